"""A person's act on a task, shared by `tasks` and `backlog`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import Namespace


def move(args: Namespace, room: str, act: str, task: int) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    reason = sys.stdin.read() if args.reason == "-" else args.reason
    answer = connect(args).post(path("rooms", room, "tasks", task, act), {"reason": reason})
    emit(answer, f"task {answer['task']['id']} is {answer['task']['status']}", as_json=args.json)
    return 0
