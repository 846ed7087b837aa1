"""The public commands, called as any program would call them: a list of arguments, and every text through standard input."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

REFUSED = 5  # wrong state, or the claim is outdated: the task is no longer ours
END_SECONDS = 3


@dataclass(frozen=True)
class Task:
    id: int
    claim: str
    attempt: int
    text: str
    name: str  # of the room and the task, for commits

    @classmethod
    def read(cls, answer: dict[str, Any]) -> "Task":
        name = f"{os.environ.get('CHATROOM_ROOM', 'room')}/{answer['task']}"
        return cls(int(answer["task"]), answer["claim"], int(answer["attempt"]), answer["text"], name)


class CommandFailed(Exception):
    """A command ended with something else than 0; its own words are the message."""

    def __init__(self, exit_code: int, words: str) -> None:
        super().__init__(words)
        self.exit_code = exit_code


class Unworkable(Exception):
    """The task can't be done; the message tells the room why."""


def log(text: str) -> None:
    print(text, flush=True)


def run(arguments: list[str], *, text: str = "", errors: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Like subprocess.run, but what it started is asked to end, and may, when we are."""
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            out, err = process.communicate(text)
        except BaseException:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err or "")


def chatroom(name: str, *words: str, text: str = "", errors: int = subprocess.PIPE) -> dict[str, Any]:
    """One command; server, token, room and role come from the environment. Raises CommandFailed."""
    done = run(["chatroom", name, *words, "--json"], text=text, errors=errors)
    try:
        answer: dict[str, Any] = json.loads(done.stdout or "{}")
    except ValueError:
        answer = {}
    if done.returncode:
        error = answer.get("error") or {}
        raise CommandFailed(done.returncode, error.get("message") or done.stderr.strip() or f"{name} ended with {done.returncode}")
    return answer


def wait_for_task() -> Task:
    # What it says while it waits, and while the server is away, belongs into our own log.
    return Task.read(chatroom("wait_for_task", errors=sys.stderr.fileno()))


def start(task: Task) -> None:
    chatroom("task_started", "--claim", task.claim)


def tell(task: Task, text: str) -> None:
    log(f"task {task.id}: {text}")
    chatroom("report_progress", "--claim", task.claim, "--text", "-", text=text)


def hand_off(task: Task, *, to: str, text: str) -> None:
    chatroom("handoff", "--claim", task.claim, "--next-role", to, "--text", "-", text=text)
    log(f"task {task.id}: handed off to {to}")


def fail(task: Task, reason: str) -> None:
    log(f"task {task.id}: failed: {reason}")
    chatroom("fail_task", "--claim", task.claim, "--text", "-", text=reason)


def main(work: Callable[[Task], None]) -> int:
    if "--version" in sys.argv[1:]:
        log(f"of Chatroom {version('chatroom')}")
        return 0
    return live(work)


def live(work: Callable[[Task], None]) -> int:
    """Waits, works, and waits again, until somebody ends it. Returns the exit code."""
    signal.signal(signal.SIGTERM, end)
    while True:
        try:
            task = wait_for_task()
        except CommandFailed as error:  # superseded, refused, not signed in
            log(f"wait_for_task: {error}")
            return error.exit_code
        except KeyboardInterrupt:
            return 130
        log(f"task {task.id}: attempt {task.attempt}")
        do(work, task)


def do(work: Callable[[Task], None], task: Task) -> None:
    try:
        start(task)
        work(task)
    except Unworkable as error:
        give_up(task, str(error))
    except CommandFailed as error:
        if error.exit_code != REFUSED:
            give_up(task, str(error))
        else:
            log(f"task {task.id}: no longer mine: {error}")


def give_up(task: Task, reason: str) -> None:
    try:
        fail(task, reason)
    except CommandFailed as error:
        log(f"task {task.id}: no longer mine: {error}")


def end(_signum: int, _frame: object) -> None:
    log("asked to end")
    sys.exit(0)


def fenced(text: str, *, language: str = "") -> str:
    """As a block of Markdown, whatever backticks are in it."""
    longest, current = 0, 0
    for letter in text:
        current = current + 1 if letter == "`" else 0
        longest = max(longest, current)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
