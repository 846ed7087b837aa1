"""The commands of agents and people, dispatched before anything heavy is loaded.

A command is a name in this table and the module of that name in `commands/`, with `arguments(parser)` and `run(args) -> exit code`.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from typing import Protocol

    from chatroom.client.errors import ClientError

    class Command(Protocol):
        def arguments(self, parser: ArgumentParser) -> None: ...
        def run(self, args: Namespace) -> int: ...


COMMANDS = {
    "wait_for_task": "Wait for work as a role of a room, and print the task.",
    "task_started": "Say that work on the task has begun.",
    "report_progress": "Tell the room how the work goes.",
    "task_complete": "Complete the task with its result.",
    "handoff": "Complete the task, and hand the work on to a role, or to user.",
    "fail_task": "Say that the task cannot be done.",
    "leave": "Take a custom agent offline.",
    "get_prompt": "Print the prompt for an agent of a role.",
    "login": "Sign this machine in to a server.",
    "logout": "Sign out: the token is revoked and forgotten.",
    "whoami": "Say as whom, and where, commands act.",
    "create_room": "Create a room with a team.",
    "rooms": "List your rooms.",
    "room_status": "Show a room's agents and work.",
    "room_log": "Show what happened in a room.",
    "send_message": "Send a message; the team makes it work.",
    "tasks": "List a room's tasks, or act on one.",
    "backlog": "List, add and move what waits for its turn.",
    "configure_agent": "Say where a role's agent lives, and what it is.",
    "start_agent": "Start a remote agent.",
    "stop_agent": "Stop a remote agent; it stays stopped.",
    "restart_agent": "Start a remote agent anew, whatever it does.",
    "abort_run": "End what a remote agent does now.",
    "abort_runs": "End every run in the rooms you own.",
    "agent_daemon": "Look after this machine's agents.",
    "daemon_status": "Say how this machine's daemon is.",
    "daemon_stop": "End this machine's daemon and its agents.",
    "harnesses": "List the programs this machine may run.",
}
# Those of the app above this one: by name only, nothing of it is loaded before one of them is called.
MACHINE_COMMANDS = ("agent_daemon", "daemon_status", "daemon_stop", "harnesses")


def load(name: str) -> Command:
    from importlib import import_module

    package = "machines.commands" if name in MACHINE_COMMANDS else "chatroom.client.commands"
    return import_module(f"{package}.{name}")  # type: ignore[return-value]


def build_parser(name: str, *, prog: str) -> ArgumentParser:
    from chatroom.client import arguments

    parser = arguments.new_parser(name, prog=prog, description=COMMANDS[name])
    load(name).arguments(parser)
    arguments.add_connection(parser)
    return parser


def run(name: str, argv: list[str], *, prog: str = "chatroom") -> int:
    """One command from its words to its exit code; whatever fails is said in one line, or as JSON."""
    from chatroom.client.arguments import parse
    from chatroom.client.errors import UNEXPECTED, ClientError

    try:
        return load(name).run(parse(build_parser(name, prog=prog), argv))
    except ClientError as failure:
        error = failure
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        silence_output()
        return UNEXPECTED
    except Exception as unexpected:  # the last resort: one line and exit 1 instead of a traceback
        if os.environ.get("CHATROOM_TRACEBACK"):
            raise
        error = ClientError(f"unexpected {type(unexpected).__name__}: {unexpected} (CHATROOM_TRACEBACK=1 shows where)")
    return report(error, name=name, as_json="--json" in argv)


def report(error: ClientError, *, name: str, as_json: bool) -> int:
    from chatroom.client.output import emit, say

    try:
        if as_json:
            emit(error.as_json(), "", as_json=True)
        else:
            say(f"{name}: {error.message}")
    except OSError:
        silence_output()
        say(f"{name}: {error.message}")
    if error.hint:
        say(f"again: {error.hint}")
    return error.exit_code


def silence_output() -> None:
    """Nobody reads our output any more: Python must not stumble over it again when it ends."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def main(argv: list[str] | None = None, *, prog: str = "chatroom") -> int:
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in COMMANDS:
        return run(words[0], words[1:], prog=prog)
    if len(words) == 2 and words[0] == "help" and words[1] in COMMANDS:
        return run(words[1], ["--help"], prog=prog)
    if not words or words in (["--help"], ["-h"]):
        print_overview(prog)
        return 0
    if words in (["--version"], ["version"]):  # else Django would tell its own
        from importlib.metadata import version

        print(f"{prog} {version('chatroom')}")
        return 0
    return run_django(words, prog=prog)


def print_overview(prog: str) -> None:
    print(f"{prog} COMMAND …        {prog} COMMAND --help\n")
    for name, description in COMMANDS.items():
        print(f"  {name:16} {description}")
    print(f"\nThe server's own commands (up, web, worker, …): {prog} help")


def run_django(words: list[str], *, prog: str) -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
    from importlib import import_module

    from chatroom.client.errors import USAGE

    # By name, so that nothing of the client depends on Django, and a check of the imports can say so.
    wrong_setting = import_module("django.core.exceptions").ImproperlyConfigured
    utility = import_module("django.core.management").ManagementUtility([prog, *words])
    fetch_command = utility.fetch_command

    def fetch(name: str) -> object:
        try:
            return fetch_command(name)
        except SystemExit:  # it has said that there is no such command
            raise SystemExit(USAGE) from None

    utility.fetch_command = fetch
    try:
        utility.execute()
    except wrong_setting as error:
        print(f"chatroom: {error}", file=sys.stderr)
        return 1
    return 0
