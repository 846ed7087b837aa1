"""What the holder of a claim says: five commands that differ in their act and in one or two arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser, *, has_text: bool = True) -> None:
    words.add_room(parser)
    words.add_claim(parser)
    if has_text:
        words.add_text(parser)


def act(args: Namespace, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """Its key derives from the claim: the same command again, after a lost answer, gets the first answer and has no second effect."""
    from chatroom.client.credentials import connect
    from chatroom.client.server import path, random_key

    key = random_key() if name == "progress" else f"{name}:{args.claim}"
    return connect(args).post(path("rooms", args.room, "claims", args.claim, name), body, key=key)
