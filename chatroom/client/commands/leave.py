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

    answer = connect(args).post(path("rooms", args.room, "agents", args.role, "leave"), {"incarnation": None})
    emit(answer, f"{answer['role']} is {answer['status']}", as_json=args.json)
    return 0
