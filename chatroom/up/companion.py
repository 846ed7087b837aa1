"""What an app above this one adds to `up`. It is known by name only, see `chatroom.contributions`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chatroom.up.part import Part


@dataclass(frozen=True)
class Place:
    """The server that is about to start. `room` is the first room's slug, "" without a demo; `is_new`: it was made just now."""

    home: Path
    url: str
    room: str
    is_new: bool


class Companion(Protocol):
    def __init__(self, place: Place) -> None:
        """Before any part runs, with the database at hand. Raises CannotStart."""

    def parts(self) -> list[Part]:
        """They are started once the server answers."""

    def settle(self, *, has_ended: Callable[[], bool]) -> list[str]:
        """On a thread of its own, once they run: what is done through the API, until `has_ended`. Returns commands worth trying."""
