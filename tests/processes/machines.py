"""A machine of the tests: a daemon with a home of its own beside a started program, and what the process table says of it."""

import contextlib
import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.processes.acts import FAST, agent, new_room, room_status, send, task, wait_for_status
from tests.processes.program import Command, Program, wait_until

AGENT = str(Path(__file__).parent / "machine_agent.sh")
HARNESSES = {"agent": [AGENT], "stubborn": [AGENT, "stubborn"], "broken": ["/bin/sh", "-c", "echo no licence found; exit 4"]}
SETTINGS = {
    **FAST,
    # Longer than a daemon pauses between two tries, as it is in life.
    "CHATROOM_HEARTBEAT_TTL": "35",
    # A busy host must not look like an outage.
    "CHATROOM_PULSE_STALE_AFTER": "6",
    "CHATROOM_UNRESPONSIVE_AFTER": "4",
    "CHATROOM_DISCONNECTED_AFTER": "6",
    "CHATROOM_RESTART_DELAY": "0.5",
    "CHATROOM_STOP_GRACE": "1.5",
}


class Machine:
    def __init__(self, program: Program, name: str, *, home: Path | None = None) -> None:
        self.program, self.name = program, name
        self.folder = program.folder / name
        self.home, self.work, self.harnesses = home or self.folder / "home", self.folder / "work", self.folder / "harnesses.toml"
        self.work.mkdir(parents=True)
        self.offer(HARNESSES)
        self.daemon: Command | None = None
        self.logs: list[Command] = []

    def offer(self, harnesses: dict[str, list[str]]) -> None:
        entries = (f"[harnesses.{name}]\ncommand = {json.dumps(command)}\n" for name, command in harnesses.items())
        self.harnesses.write_text("\n".join(entries))

    # its daemon

    def launch(self, **settings: str) -> Command:
        words = ("--name", self.name, "--home", str(self.home), "--allow-dir", str(self.work), "--harnesses", str(self.harnesses))
        return self.program.start_raw("agent_daemon", *words, "--server", self.program.url, settings=settings)

    def start(self) -> None:
        self.daemon = self.launch()
        self.logs.append(self.daemon)
        self.daemon.wait_for_output("connected to", within=40)
        self.wait_for("connected")

    @property
    def pid(self) -> int:
        assert self.daemon is not None
        return self.daemon.pid

    def kill(self) -> None:
        """SIGKILL: what it looks after lives on."""
        assert self.daemon is not None
        self.daemon.kill()

    def stop(self) -> None:
        """Ends the daemon and fails when anything that it ever started is left."""
        if self.daemon is not None and self.daemon.returncode is None:
            self.daemon.signal(signal.SIGTERM)
            self.daemon.wait(within=30)
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"orphans of {self.name}: {left}"

    # what others see of it

    def status(self) -> str:
        found: str = self.program.api("GET", f"machines/{self.name}").json().get("status", "")
        return found

    def wait_for(self, status: str, *, within: float = 30.0) -> None:
        wait_until(lambda: self.status() == status, within=within, what=f"{self.name} is {status}")

    def processes(self) -> dict[int, str]:
        """Every living process that came from its runs, shims included, however far it got away."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                words = " ".join(process.cmdline())
                is_marked = process.environ().get("CHATROOM_RUN_DIRECTORY", "").startswith(str(self.home))
                if (is_marked or f"{self.home}/runs/" in words) and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = words
        return found

    def leaders(self) -> list[int]:
        """The programs of its agents: children of shims."""
        all_ = self.processes()
        shims = {pid for pid, words in all_.items() if "shim" in words}
        return [pid for pid in all_ if pid not in shims and parent_of(pid) in shims and AGENT in all_[pid]]

    def has_settled(self, runs: int) -> bool:
        """The ends of so many are in the outbox."""
        return len(list((self.home / "runs").glob("*/settled"))) == runs

    def environment(self, pid: int) -> dict[str, str]:
        with contextlib.suppress(psutil.Error, OSError):
            return psutil.Process(pid).environ()
        return {}

    # agents that live there

    def place(self, room: str, role: str = "builder", *, harness: str = "agent") -> None:
        body = {"kind": "remote", "machine": self.name, "harness": harness, "directory": str(self.work), "mode": "loop"}
        answer = self.program.api("PUT", f"rooms/{room}/agents/{role}", body)
        assert answer.status == 200, answer.text

    def room(self, name: str, *roles: str, harness: str = "agent") -> str:
        """A room whose agents live here and wait for work."""
        room = new_room(self.program, name[:60], team=list(roles or ("builder",)))
        for role in roles or ("builder",):
            self.place(room, role, harness=harness)
            order(self.program, room, "start", role)
        for role in roles or ("builder",):
            wait_until(partial(is_at_home, self.program, room, role), within=40, what=f"{role} waits")
        return room


def parent_of(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).ppid()
    return 0


def is_waiting(program: Program, room: str, role: str) -> bool:
    found = agent(program, room, role)
    return bool(found["status"] == "ready" and found["waiting"])


def is_at_home(program: Program, room: str, role: str) -> bool:
    """It may wait for work a moment before its daemon's word about its process has come."""
    return is_waiting(program, room, role) and pid_of(program, room, role) != 0


def order(program: Program, room: str, act: str, role: str = "builder") -> dict[str, Any]:
    """A person's press of a button."""
    answer = program.api("POST", f"rooms/{room}/agents/{role}/{act}")
    assert answer.status == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def pid_of(program: Program, room: str, role: str = "builder") -> int:
    return int((agent(program, room, role)["run"] or {}).get("pid") or 0)


def wait_for_another(program: Program, room: str, role: str = "builder", *, than: int) -> int:
    """The PID of the process that took its place, once it waits for work."""

    def found() -> int:
        pid = pid_of(program, room, role)
        return pid if pid not in {0, than} and agent(program, room, role)["status"] == "ready" else 0

    return wait_until(found, within=60, what=f"{role} runs as another process than {than}")


def hold(program: Program, room: str, role: str = "builder") -> int:
    """A task in the middle of which the agent is from now on."""
    number = send(program, room, "hold this", to=role)
    wait_until(lambda: task(program, room, number)["status"] == "in_progress", within=30, what=f"{role} works")
    wait_for_status(program, room, role, "working")
    return number


def is_settled(program: Program, room: str) -> bool:
    return all(item["status"] in {"ready", "offline"} for item in room_status(program, room)["agents"])


def programs_of(program: Program, room: str) -> list[int]:
    """The process table's word on who plays a role there; what an agent itself started doesn't count."""
    found: dict[int, int] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            if (environment.get("CHATROOM_SERVER"), environment.get("CHATROOM_ROOM")) == (program.url, room):
                found[process.pid] = process.ppid()
    return [pid for pid, parent in found.items() if parent not in found]
