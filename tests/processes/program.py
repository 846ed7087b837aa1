"""The started program, as its users meet it: commands, HTTP, signals. Nothing here imports models or services."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil

from tests.processes.broker import Broker

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent.parent
MANAGE = [sys.executable, str(ROOT / "manage.py")]
START_LIMIT, END_LIMIT, POLL = 90.0, 12.0, 0.05
# What the surrounding shell says must not reach the program: each test says it anew.
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "PYTHONWARNINGS", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def wait_until(condition: Callable[[], T], *, within: float = 20.0, what: str = "") -> T:
    """The first true value of `condition`; an error when the time is over."""
    until = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {within:g} s: {what or getattr(condition, '__name__', condition)}; last value: {found!r}")
        time.sleep(POLL)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Command:
    """A command of ours in the background; its output is read from files, so that it never blocks."""

    def __init__(self, arguments: list[str], *, environment: Mapping[str, str], folder: Path, name: str, cwd: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        self.stdout_path, self.stderr_path = folder / f"{name}.out", folder / f"{name}.err"
        with self.stdout_path.open("wb") as out, self.stderr_path.open("wb") as err:
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=dict(environment),
                cwd=cwd or folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    @property
    def stdout(self) -> str:
        return self.stdout_path.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_path.read_text(errors="replace")

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, *, within: float = 20.0) -> int:
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{' '.join(self.arguments)} did not end within {within:g} s:\n{self.output}") from None

    def wait_for_output(self, text: str, *, within: float = 20.0) -> str:
        def found() -> str:
            output = self.output
            if text not in output and self.returncode is not None:
                raise AssertionError(f"ended with {self.returncode} without saying {text!r}:\n{output}")
            return output if text in output else ""

        return wait_until(found, within=within, what=f"{text!r} in the output of {' '.join(self.arguments)}")

    def kill(self) -> None:
        if self.returncode is None:
            self.process.kill()
        self.process.wait(10)


class Program:
    """One server with a home of its own: `manage.py up`, and whatever is said to it."""

    def __init__(self, home: Path, *, environment: Mapping[str, str], settings: Mapping[str, str], broker: Broker) -> None:
        self.home, self.port, self.broker = home, free_port(), broker
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**environment, "CHATROOM_HOME": str(home), **settings}
        self.folder = home.parent / f"{home.name}-output"
        self.up: Command | None = None
        self.commands: list[Command] = []
        self.started_pids: set[int] = set()

    # its life

    def start(self, *arguments: str, ready: bool = True, daemon: bool = False) -> Command:
        """Starts `up`; returns when it serves, unless `ready` is false. Without the local daemon the first room's agents are custom."""
        alone = () if daemon else ("--no-daemon",)
        self.up = self.start_raw("up", "--port", str(self.port), *alone, *arguments)
        if ready:
            self.up.wait_for_output("Ctrl-C ends everything", within=START_LIMIT)
            self.started_pids |= set(self.pids())
        return self.up

    def stop(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the commands, then the server; fails when something of it remains."""
        for command in self.commands:
            if command is not self.up:
                command.kill()
        self.stop_server(number=number)

    def stop_server(self, *, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the server alone: commands and daemons of the test go on."""
        if self.up is None or self.up.returncode is not None:
            return
        pids = self.pids() | {self.up.pid}
        self.up.signal(number)
        try:
            self.up.wait(within=END_LIMIT)
        finally:
            self.up.kill()
        wait_until(lambda: not [pid for pid in pids if is_alive(pid)], within=5, what="every process of the server ended")

    def pids(self) -> set[int]:
        """Every living process of this server, but `up` itself."""
        if self.up is None:
            return set()
        with contextlib.suppress(psutil.NoSuchProcess):
            return {child.pid for child in psutil.Process(self.up.pid).children(recursive=True)}
        return set()

    @property
    def has_valkey(self) -> bool:
        """On services there is no broker of its own."""
        return self.broker.proxy is None

    @property
    def has_postgres(self) -> bool:
        return "DATABASE_URL" in self.environment

    def part_pid(self, name: str) -> int:
        def read() -> int:
            try:
                return int((self.home / "run" / f"{name}.pid").read_text())
            except (FileNotFoundError, ValueError):
                return 0

        return wait_until(read, what=f"the PID of {name}")

    def kill_part(self, name: str, *, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal to web, worker, sweep or valkey; returns the PID it had."""
        pid = self.part_pid(name)
        os.kill(pid, number)
        return pid

    def wait_for_restart(self, name: str, *, old: int, within: float = 20.0) -> int:
        def restarted() -> int:
            pid = self.part_pid(name)
            return pid if pid != old and is_alive(pid) else 0

        return wait_until(restarted, within=within, what=f"{name} runs again")

    def is_ready(self, *, port: int | None = None) -> bool:
        try:
            return self.http("GET", "/readyz", port=port).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def wait_until_ready(self, *, within: float = 30.0) -> None:
        wait_until(self.is_ready, within=within, what=f"{self.url}/readyz answers 200")

    # what is said to it

    def start_raw(self, *arguments: str, settings: Mapping[str, str] | None = None, cwd: Path | None = None) -> Command:
        """`manage.py` with these arguments, in the background."""
        name = f"{len(self.commands):02}-{arguments[0]}"
        environment = {**self.environment, **(settings or {})}
        command = Command([*MANAGE, *arguments], environment=environment, folder=self.folder, name=name, cwd=cwd)
        self.commands.append(command)
        return command

    def start_command(self, *arguments: str, settings: Mapping[str, str] | None = None) -> Command:
        """A command of agents and people, in the background."""
        return self.start_raw(*arguments, settings=settings)

    def run(self, *arguments: str, settings: Mapping[str, str] | None = None, within: float = 30.0) -> Command:
        """A command of agents and people, until its end."""
        command = self.start_raw(*arguments, settings=settings)
        command.wait(within=within)
        return command

    def run_json(self, *arguments: str, settings: Mapping[str, str] | None = None, within: float = 30.0) -> Any:
        """The JSON a command answered; fails unless it ended with 0."""
        command = self.run(*arguments, "--json", settings=settings, within=within)
        assert command.returncode == 0, f"{arguments}: exit {command.returncode}\n{command.output}"
        return json.loads(command.stdout)

    def token(self) -> str:
        return (self.home / "owner.token").read_text().strip()

    def http(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=15)
        sent = dict(headers or {})
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body), headers=sent)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace"))
        finally:
            connection.close()

    def api(self, method: str, path: str, body: Any = None, *, token: str | None = None, **headers: str) -> Answer:
        """As the owner, under /api/v1/."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http(method, f"/api/v1/{path}", body, token=token or self.token(), headers=named)


@contextlib.contextmanager
def running(program: Program, *arguments: str) -> Iterator[Program]:
    """Served inside of the block, gone after it, whatever happened."""
    try:
        program.start(*arguments)
        yield program
    finally:
        program.stop()
