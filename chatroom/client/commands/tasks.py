from __future__ import annotations

from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any

from chatroom.client.errors import usage_error
from chatroom.client.output import emit, table

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

ACTS = ("cancel", "reset", "retry", "force-complete", "reopen")


def arguments(parser: ArgumentParser) -> None:
    parser.usage = "%(prog)s [ROOM] [--status S] [--json]\n       %(prog)s [ROOM] cancel|reset|retry|force-complete|reopen ID [--reason T]"
    parser.add_argument("words", nargs="*", metavar="ROOM ACT ID", help="the room (CHATROOM_ROOM); what to do with which of its tasks")
    parser.add_argument("--task", type=int, metavar="ID", help=SUPPRESS)
    parser.add_argument("--status", help="only tasks in this status; without it all unfinished, then the newest finished")
    parser.add_argument("--reason", "--text", dest="reason", default="", help="why; - reads it from standard input")


def run(args: Namespace) -> int:
    from os import environ

    from chatroom.client.credentials import connect
    from chatroom.client.moves import move
    from chatroom.client.server import path

    room, act, task = place(list(args.words), room=environ.get("CHATROOM_ROOM") or "", task=args.task)
    if act:
        return move(args, room, act.replace("-", "_"), task)
    answer = connect(args).get(path("rooms", room, "tasks"), status=args.status)
    emit(answer, tasks_table(answer["tasks"]), as_json=args.json)
    return 0


def place(words: list[str], *, room: str, task: int | None) -> tuple[str, str, int]:
    """ROOM, ACT and ID out of what was given: the room is the first word unless the environment names it and an act comes first."""
    tail = [str(task)] if task is not None else []
    rest = words + tail
    if not (room and (not rest or (len(rest) == 2 and rest[0].replace("_", "-") in ACTS))):
        room, rest = (rest[0], rest[1:]) if rest else ("", [])
    if not room:
        raise usage_error("which ROOM? Give its id or slug, or set CHATROOM_ROOM")
    if not rest:
        return room, "", 0
    act = rest[0].replace("_", "-")
    if act not in ACTS or len(rest) != 2 or not rest[1].isdecimal():
        raise usage_error(f"{' '.join(rest)}: expected one of {', '.join(ACTS)}, then the id of one task")
    return room, act, int(rest[1])


def tasks_table(tasks: list[dict[str, Any]]) -> str:
    rows: list[list[object]] = []
    for task in tasks:
        status = f"{task['status']} (place {task['position']})" if task.get("position") else task["status"]
        rows.append(
            [task["id"], status, task["assigned_role"], task["attempt"], task["holder"], task.get("failure_reason") or task["title"]]
        )
    return table(["TASK", "STATUS", "ROLE", "ATTEMPT", "HOLDER", "TITLE"], rows) if rows else "no tasks"
