from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatroom.client import agent_acts
from chatroom.client import arguments as words
from chatroom.client.errors import WORK_FAILED, ClientError
from chatroom.client.output import emit, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from chatroom.client.server import Server

FIELDS = ("kind", "machine", "harness", "model", "directory", "mode")
ALIVE = ("ready", "working", "restarting")


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    words.add_role(parser)
    parser.add_argument("--kind", choices=["remote", "custom"], help="remote: a machine's daemon starts it; custom: a person does")
    parser.add_argument("--machine", metavar="M", help="the machine it lives on")
    parser.add_argument("--harness", metavar="H", help="the program, by the name that the machine's own configuration gives it")
    parser.add_argument("--model", metavar="NAME", help="the model, if the harness takes one")
    parser.add_argument("--dir", dest="directory", metavar="D", help="where it works: a directory that the machine allows")
    parser.add_argument("--mode", choices=["loop", "task"], help="loop: one program that waits for work again and again")
    parser.add_argument("--force", action="store_true", help="give up a run on a machine that is away")


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    server = connect(args)
    resource = path("rooms", args.room, "agents", args.role)
    body = {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None} | {"force": args.force}
    try:
        answer = server.put(resource, body)
    except ClientError as error:
        if error.code != "process_lives":
            raise
        answer = move(server, args, resource=resource, body=body)
    emit(answer, as_text(answer), as_json=args.json)
    return 0


def move(server: Server, args: Namespace, *, resource: str, body: dict[str, Any]) -> dict[str, Any]:
    """What a live process has in its hands can't be taken away: it is stopped, moved, and started again where it lives now."""
    say(f"{args.role} is running: stopping it first")
    command = agent_acts.give(server, args.room, args.role, "stop")
    stopped = agent_acts.until_over(server, command, unless=lambda: is_away(server, command["machine"]))
    if stopped["state"] not in {"completed", *agent_acts.IN_FLIGHT}:
        raise ClientError(f"{args.role} could not be stopped: {stopped['outcome']}", exit_code=WORK_FAILED, code="command_failed")
    # Its machine may have gone away meanwhile: then this is refused, unless it was forced.
    answer = server.put(resource, body)
    if answer["kind"] == "remote":
        started = agent_acts.give(server, args.room, args.role, "start")
        answer = {**answer, "command": started["command"], "status": "restarting"}
    return answer


def is_away(server: Server, machine: str) -> bool:
    from chatroom.client.server import path

    return bool(server.get(path("machines", machine))["status"] == "disconnected")


def as_text(answer: dict[str, Any]) -> str:
    where = f" on {answer['machine']} ({answer['harness']})" if answer.get("machine") else ""
    later = ""
    if answer["kind"] == "remote" and answer["status"] in ALIVE and not answer.get("command"):
        later = "; a process that runs keeps what it was started with: restart_agent"
    return f"{answer['role']} is {answer['kind']}{where}, and {answer['status']}{later}"
