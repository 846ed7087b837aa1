from __future__ import annotations

from argparse import SUPPRESS
from typing import TYPE_CHECKING

from chatroom.client import arguments as words
from chatroom.client.commands.tasks import tasks_table
from chatroom.client.errors import usage_error
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

MOVES = {"move": "move_to_queue", "approve": "approve", "send-back": "send_back", "close": "cancel"}
SHOWN = ("backlog", "pending_user_review")


def arguments(parser: ArgumentParser) -> None:
    parser.usage = (
        "%(prog)s add [ROOM] --text T|-|--file F [--to R] [--priority N]\n       %(prog)s list [ROOM]\n"
        "       %(prog)s move|approve [ROOM] ID\n       %(prog)s send-back|close [ROOM] ID --reason T"
    )
    parser.add_argument("act", choices=["add", "list", *MOVES], help="what to do")
    words.add_room(parser)
    parser.add_argument("item", nargs="?", metavar="ID", help="the item's task id")
    parser.add_argument("--task", metavar="ID", help=SUPPRESS)
    parser.add_argument("--text", help="the item, or the reason; - reads it from standard input")
    parser.add_argument("--reason", help="why it is sent back or closed")
    parser.add_argument("--file", help="a file with the text")
    parser.add_argument("--to", metavar="R", help="the role that is to do it; without it the team's entry point")
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher goes first (0)")


def run(args: Namespace) -> int:
    if args.act in ("add", "list"):
        if item := args.item or args.task:
            raise usage_error(f"{args.act}: found {item}, expected no ID: it is about no item that is there already")
        return add(args) if args.act == "add" else show(args)
    from chatroom.client.moves import move

    room, item = place(args)
    if args.reason is None:
        args.reason = words.read_text(args) if args.text is not None or args.file else ""
    return move(args, room, MOVES[args.act], item)


def place(args: Namespace) -> tuple[str, int]:
    from os import environ

    room, item = args.room, args.item or args.task
    if item is None and environ.get("CHATROOM_ROOM"):
        # The one word that was given is the item: the environment names the room.
        room, item = environ["CHATROOM_ROOM"], args.room
    if item is None or not item.isdecimal():
        raise usage_error(f"{args.act}: expected the ID of one item, a number; found {item or 'none'}")
    return room, int(item)


def add(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    if (args.text is None) == (args.file is None):
        raise usage_error("add: expected --text T, --text - or --file F")
    body = {"text": words.read_text(args), "to": args.to, "priority": args.priority}
    answer = connect(args).post(path("rooms", args.room, "backlog"), body)
    emit(answer, f"task {answer['task']['id']} is in the backlog", as_json=args.json)
    return 0


def show(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    server = connect(args)
    tasks = [task for status in SHOWN for task in server.get(path("rooms", args.room, "tasks"), status=status)["tasks"]]
    emit({"tasks": tasks}, tasks_table(tasks), as_json=args.json)
    return 0
