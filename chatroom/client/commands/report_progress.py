from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client import claims
from chatroom.client.arguments import read_text
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import Namespace

arguments = claims.arguments


def run(args: Namespace) -> int:
    answer = claims.act(args, "progress", {"text": read_text(args)})
    emit(answer, f"message {answer['message']} on task {answer['task']}", as_json=args.json)
    return 0
