from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client import arguments as words
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    words.add_role(parser)


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    answer = connect(args).get(path("rooms", args.room, "agents", args.role, "prompt"))
    emit(answer, answer["prompt"], as_json=args.json)
    return 0
