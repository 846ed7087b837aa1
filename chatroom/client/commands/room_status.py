from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words
from chatroom.client.output import clock, emit, one_line, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

CLEAR = "\x1b[H\x1b[2J"


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    parser.add_argument("--watch", action="store_true", help="show it again whenever something changes")


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect

    if args.watch:
        return watch(args)
    show(connect(args), args)
    return 0


def watch(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.feed import last_event, later_events

    server = connect(args, patience=None)
    # The cursor first: what changes between the two is shown once more rather than never.
    after = last_event(server, args.room)
    show(server, args)
    for _ in later_events(server, args.room, after=after):
        show(server, args)
    return 0


def show(server: Any, args: Namespace) -> None:
    from chatroom.client.server import path

    answer = server.get(path("rooms", args.room))
    if args.watch and not args.json and sys.stdout.isatty():
        sys.stdout.write(CLEAR)
    emit(answer, as_text(answer) + ("\n" if args.watch else ""), as_json=args.json)


def as_text(answer: dict[str, Any]) -> str:
    room = answer["room"]
    parts = [f"{one_line(room['name'])} ({room['slug']}, id {room['id']})", agents_table(answer["agents"])]
    if answer["tasks"]:
        rows = [[task["id"], task["status"], task["assigned_role"], task["attempt"], task["holder"]] for task in answer["tasks"]]
        parts.append(table(["TASK", "STATUS", "ROLE", "ATTEMPT", "HOLDER"], rows))
    if answer["machines"]:
        rows = [[machine["name"], machine["status"], clock(machine["last_seen_at"])] for machine in answer["machines"]]
        parts.append(table(["MACHINE", "STATUS", "SEEN"], rows))
    return "\n\n".join(parts)


def agents_table(agents: list[dict[str, Any]]) -> str:
    rows: list[list[object]] = []
    for agent in agents:
        seen = clock(agent["last_seen_at"]) if agent.get("last_seen_at") else None
        rows.append([agent["role"], agent["kind"], label(agent), agent["task"], agent["machine"], seen, agent["error_message"]])
    return table(["ROLE", "KIND", "STATUS", "TASK", "MACHINE", "SEEN", "NOTE"], rows)


def label(agent: dict[str, Any]) -> str:
    status = str(agent["status"])
    name = "DEAD (UNRECOVERABLE)" if status == "dead_failed_revive" else status.upper()
    return f"{name}, not waiting yet" if status == "ready" and agent.get("waiting") is False else name
