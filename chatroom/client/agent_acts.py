"""What people ask of a remote agent: a command that its machine carries out, and whose end can be waited for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words
from chatroom.client.errors import WORK_FAILED
from chatroom.client.output import emit, one_line, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable

    from chatroom.client.server import Server

IN_FLIGHT = ("pending", "dispatched")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    words.add_role(parser)
    parser.add_argument("--wait", action="store_true", help="wait for its end: 0 when it is done, 9 when it failed, with the reason")


def act(args: Namespace, name: str) -> int:
    from chatroom.client.credentials import connect

    server = connect(args)
    command = give(server, args.room, args.role, name)
    if args.wait:
        return show_end(until_over(server, command), args)
    emit(command, as_text(command), as_json=args.json)
    return 0


def give(server: Server, room: str, role: str, name: str) -> dict[str, Any]:
    from chatroom.client.server import path

    return server.post(path("rooms", room, "agents", role, name))


def until_over(server: Server, command: dict[str, Any], *, unless: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """The command as it ended, or as it is once `unless` holds. However long we cannot see it: the machine goes on."""
    server.patience = None
    pause, said = FIRST_PAUSE, ""
    while command["state"] in IN_FLIGHT and not unless():
        if command["state"] != said:
            said = command["state"]
            say(f"{as_text(command)}; waiting for its end…")
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
        command = server.get(f"commands/{command['command']}")
    return command


def show_end(command: dict[str, Any], args: Namespace) -> int:
    has_failed = command["state"] != "completed"
    whole = dict(command)
    if has_failed:
        reason = command["outcome"] or "no reason was given"
        whole["error"] = {"code": "command_failed", "message": reason, "current": command["state"], "allowed": []}
        say(f"{command['act']}: {command['state']}: {one_line(reason)}")
    if args.json or not has_failed:
        emit(whole, as_text(command), as_json=args.json)
    return WORK_FAILED if has_failed else 0


def as_text(command: dict[str, Any]) -> str:
    where = f" on {command['machine']}" if command.get("machine") else ""
    outcome = f": {one_line(command['outcome'])}" if command["outcome"] else ""
    return f"{command['act']} {command['role']}{where} (command {command['command']}) is {command['state']}{outcome}"
