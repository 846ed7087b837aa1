from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

TEAMS = ("solo", "pair", "squad")


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the room's name; its slug is made from it")
    parser.add_argument("--team", required=True, help="pair, squad, solo, or roles: R1,R2,… (the first gets the messages)")
    parser.add_argument("--fail-fast", action="store_true", help="one failed task aborts the other work of the room")


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect

    team = args.team if args.team in TEAMS else [role.strip() for role in args.team.split(",") if role.strip()]
    answer = connect(args).post("rooms", {"name": args.name, "team": team, "fail_fast": args.fail_fast})
    emit(answer, f"room {answer['slug']} (id {answer['id']}): {answer['url']}", as_json=args.json)
    return 0
