from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client.output import emit, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    """Nothing beyond what all commands take."""


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect

    answer = connect(args).get("rooms")
    rows = [[room["id"], room["slug"], room["name"]] for room in answer["rooms"]]
    emit(answer, table(["ID", "ROOM", "NAME"], rows) if rows else "no rooms yet: create_room NAME --team pair", as_json=args.json)
    return 0
