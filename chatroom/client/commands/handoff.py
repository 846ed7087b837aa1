from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client import claims
from chatroom.client.arguments import read_text
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    claims.arguments(parser)
    parser.add_argument("--next-role", required=True, metavar="R", help="the role that goes on with it, or user")


def run(args: Namespace) -> int:
    answer = claims.act(args, "handoff", {"next_role": args.next_role, "text": read_text(args)})
    goes_on = answer.get("next")
    onward = f"task {goes_on['task']} is {goes_on['status']} for {goes_on['role']}" if goes_on else "handed to user: the chain ends here"
    emit(answer, f"task {answer['task']} is {answer['status']}; {onward}", as_json=args.json)
    return 0
