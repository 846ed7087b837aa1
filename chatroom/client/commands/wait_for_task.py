from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words
from chatroom.client.errors import UNEXPECTED, ClientError
from chatroom.client.output import write

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from chatroom.client.waiting import Waiting

SHOWN = ("task", "claim", "attempt", "role", "text", "from", "context")


class Stopped(KeyboardInterrupt):
    """A signal asks us to end; raised out of whatever we wait for."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    words.add_role(parser)
    parser.add_argument("--timeout", type=words.seconds, metavar="S", help="give up after S seconds without a task (exit 7)")


def run(args: Namespace) -> int:
    try:
        return wait(args)
    except ClientError as failure:
        failure.hint = resume_command(args)
        raise


def wait(args: Namespace) -> int:
    from chatroom.client.credentials import find_place, require_token
    from chatroom.client.waiting import Waiting

    place = find_place(args)
    require_token(place)
    waiting = Waiting(place.url, place.token, room=args.room, role=args.role, seconds=args.timeout, meanwhile=load_text)
    handle_signals(stop)
    try:
        task = waiting.until_task()
        deliver(task, args=args)
    except BaseException as failure:
        handle_signals(signal.SIG_DFL)  # a second signal ends us at once
        raise ended(waiting, failure) from None
    handle_signals(signal.SIG_IGN)  # the task is printed and ours: from here on the answer is 0
    waiting.bye("task")
    return 0


def load_text() -> None:
    """What prints the task takes some milliseconds to load: better now than between its arrival and its first line."""
    from chatroom.client import task_text  # noqa: F401
    from chatroom.client.program import called_as

    called_as()


def ended(waiting: Waiting, failure: BaseException) -> BaseException:
    """Takes leave as the reason demands, and says what the command ends with."""
    task = waiting.task
    if isinstance(failure, ClientError):
        waiting.end(failure.exit_code)
        return failure
    waiting.leave()
    if isinstance(failure, Stopped):
        return ClientError(f"stopped by {signal.Signals(failure.signum).name}", exit_code=128 + failure.signum, code="stopped")
    if isinstance(failure, OSError) and task:
        message = f"task {task['task']} was received but could not be printed ({failure}); it was given back"
        return ClientError(message, exit_code=UNEXPECTED, code="output_closed")
    return failure


def stop(signum: int, _frame: object) -> None:
    raise Stopped(signum)


def handle_signals(handler: Any) -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What was ignored when we started (nohup, a background job) stays ignored.
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, handler)


def deliver(task: dict[str, Any], *, args: Namespace) -> None:
    if args.json:
        import json

        write(json.dumps({name: task.get(name) for name in SHOWN}))
    else:
        from chatroom.client.task_text import task_text

        write(task_text(task, room=args.room, server=args.server, has_token_option=bool(args.token)))


def resume_command(args: Namespace) -> str:
    from chatroom.client.program import command

    timeout = [] if args.timeout is None else ["--timeout", f"{args.timeout:g}"]
    return command("wait_for_task", args.room, "--role", args.role, *timeout, server=args.server)
