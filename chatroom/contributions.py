"""What the apps put on a room's page, and beside the server, by dotted name.

Nothing is loaded before it is asked for, and no app knows those above it.
`part`: a `feed.Part` · `cards`: what needs a person, `Room -> Iterable[Card]` · `goings`: what a row of the rooms list tells ·
`agent_extra`: what stands in an agent's row, `list[Agent] -> Mapping[id, Extra]` · `list`: a `nav.ListPart` ·
`companion`: an `up.companion.Companion`.
"""

from functools import cache
from typing import Any

from django.utils.module_loading import import_string

NAMES: dict[str, list[str]] = {"part": [], "cards": [], "goings": [], "agent_extra": [], "list": [], "companion": []}


def contribute(**names: str) -> None:
    """In `apps.py`: `contribute(part="agents.panel.agents_part", cards="agents.panel.agent_cards")`."""
    for place, name in names.items():
        if name not in NAMES[place]:
            NAMES[place].append(name)


@cache
def contributed(place: str) -> tuple[Any, ...]:
    return tuple(import_string(name) for name in NAMES[place])
