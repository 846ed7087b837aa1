from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client import claims
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    claims.arguments(parser, has_text=False)


def run(args: Namespace) -> int:
    answer = claims.act(args, "start", {})
    emit(answer, f"task {answer['task']} is {answer['status']}", as_json=args.json)
    return 0
