"""What people and agents do with a started program, in the words of the tests."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.processes.program import Command, Program, wait_until

# Shorter times, not shorter paths: every timer of the program is there, only faster.
FAST = {
    "CHATROOM_HEARTBEAT_INTERVAL": "1",
    "CHATROOM_HEARTBEAT_TTL": "5",
    "CHATROOM_DROPPED_TTL": "1.5",
    "CHATROOM_DAEMON_HEARTBEAT_INTERVAL": "1",
    "CHATROOM_SWEEP_INTERVAL": "0.5",
    "CHATROOM_PULSE_INTERVAL": "0.5",
    "CHATROOM_PULSE_STALE_AFTER": "2",
    "CHATROOM_PART_RESTART_DELAY": "0.2",
    "CHATROOM_PART_RESTART_LIMIT": "0.2",
    # The clients': after a lost connection the first try comes within this time, and later ones after no longer a pause than this.
    "CHATROOM_RECONNECT_WITHIN": "0.5",
    "CHATROOM_RECONNECT_PAUSE": "1.5",
}


def new_room(program: Program, name: str, *, team: str | list[str] = "pair") -> str:
    answer = program.api("POST", "rooms", {"name": name, "team": team})
    assert answer.status == 201, answer.text
    slug: str = answer.json()["slug"]
    return slug


def room_status(program: Program, room: str) -> Any:
    answer = program.api("GET", f"rooms/{room}")
    assert answer.status == 200, answer.text
    return answer.json()


def agent(program: Program, room: str, role: str = "builder") -> dict[str, Any]:
    found: dict[str, Any] = next(item for item in room_status(program, room)["agents"] if item["role"] == role)
    return found


def task(program: Program, room: str, task_id: int) -> dict[str, Any]:
    found: dict[str, Any] = program.api("GET", f"rooms/{room}/tasks/{task_id}").json()
    return found


def wait_for_status(program: Program, room: str, role: str, status: str, *, within: float = 20.0) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def has_it() -> bool:
        found.update(agent(program, room, role))
        return bool(found["status"] == status)

    wait_until(has_it, within=within, what=f"{role} of {room} is {status}")
    return found


def wait_until_waiting(program: Program, room: str, role: str = "builder") -> None:
    wait_until(lambda: agent(program, room, role)["waiting"], what=f"{role} of {room} waits")


def start_waiting(program: Program, room: str, role: str = "builder", *words: str, settings: Mapping[str, str] | None = None) -> Command:
    """A `wait_for_task` that has joined."""
    command = program.start_command("wait_for_task", room, "--role", role, *words, settings=settings)
    command.wait_for_output("waiting for work as")
    return command


def send(program: Program, room: str, text: str, **fields: str) -> int:
    answer = program.api("POST", f"rooms/{room}/messages", {"text": text, **fields})
    assert answer.status == 201, answer.text
    found: int = answer.json()["task"]
    return found


def claim_of(command: Command) -> str:
    """What the printed task says its claim is."""
    found = re.search(r"c_[\w-]+", command.stdout)
    assert found, command.output
    return found[0]


def take(program: Program, room: str, role: str = "builder") -> str:
    """Waits as the role until its task is delivered; returns the claim."""
    command = program.run("wait_for_task", room, "--role", role, "--json", "--timeout", "20")
    assert command.returncode == 0, command.output
    claim: str = json.loads(command.stdout)["claim"]
    return claim


def act(program: Program, room: str, claim: str, name: str, **body: str) -> Any:
    answer = program.api("POST", f"rooms/{room}/claims/{claim}/{name}", body)
    assert answer.status == 200, answer.text
    return answer.json()


def events(program: Program, room: str, **wanted: Any) -> list[dict[str, Any]]:
    """The room's events, from its first, that have these values."""
    found: list[dict[str, Any]] = []
    last = 0
    while page := program.api("GET", f"rooms/{room}/events?after={last}&limit=500").json()["events"]:
        found, last = found + page, page[-1]["id"]
    return [event for event in found if all(event[name] == value for name, value in wanted.items())]


def messages(program: Program, room: str, *kinds: str) -> list[dict[str, Any]]:
    found = program.api("GET", f"rooms/{room}/messages?after=0&limit=500").json()["messages"]
    return [message for message in found if message["kind"] in kinds or not kinds]


class Socket:
    """A raw waiting socket: for what no honest client does."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def say(self, type: str, **fields: Any) -> None:  # noqa: A002  (the word of the protocol)
        self.connection.send(json.dumps({"type": type, **fields}))

    def hear(self, kind: str) -> dict[str, Any]:
        """The next message of this kind; others are passed over."""
        while True:
            message: dict[str, Any] = json.loads(self.connection.recv(timeout=15))
            if message["type"] == kind:
                return message

    def hello(self, room: str, role: str = "builder", *, incarnation: str, joined: bool = False) -> dict[str, Any]:
        self.say("hello", protocol=1, room=room, role=role, incarnation=incarnation, joined=joined)
        return self.hear("welcome")

    def drop(self) -> None:
        """Gone without a word."""
        self.connection.close_socket()


def outlast_every_lease(program: Program) -> None:
    """Until an agent that fell silent now would be dead in ordinary times. Nothing can be asked meanwhile: only time says it."""
    lifetime = float(program.environment["CHATROOM_HEARTBEAT_TTL"])
    until = time.monotonic() + lifetime + 1
    wait_until(lambda: time.monotonic() > until, within=2 * lifetime + 2)


@contextmanager
def waiting_socket(program: Program, *, port: int | None = None) -> Iterator[Socket]:
    url = f"ws://127.0.0.1:{port or program.port}/ws/agent/"
    with connect(url, additional_headers={"Authorization": f"Bearer {program.token()}"}, compression=None) as connection:
        yield Socket(connection)
