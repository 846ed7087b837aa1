"""A server played by the test, and a machine with real processes around one supervisor."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from machines.daemon import process as processes
from machines.daemon.errors import LinkLost
from machines.daemon.messages import AgentEntry, Settings
from machines.daemon.policy import Limits
from machines.daemon.reports import Reports
from machines.daemon.runs import unsettled
from machines.daemon.supervisor import Supervisor
from machines.daemon.surroundings import HarnessBook, Surroundings
from tests.daemon.processes import marked

Found = TypeVar("Found")
CRASHING = "print('cannot go on', flush=True)\nraise SystemExit(3)"
SLEEPER = "import time\nprint('up', flush=True)\ntime.sleep(600)"
STUBBORN = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEPER}"


async def until(condition: Callable[[], Found], *, within: float = 15.0, what: str = "") -> Found:
    deadline = asyncio.get_running_loop().time() + within
    while not (found := condition()):
        assert asyncio.get_running_loop().time() < deadline, what or "not in time"
        await asyncio.sleep(0.005)
    return found


def entry(**changes: Any) -> AgentEntry:
    plain = AgentEntry(
        agent=7,
        room="demo",
        role="builder",
        mode="loop",
        desired="running",
        generation=1,
        exhausted=None,
        command=None,
        run=None,
        joined=False,
        history=(),
    )
    return replace(plain, **changes)


class FakeLink:
    """Opens runs as the server would; `joins` says which runs join."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.is_up, self.up_since = True, 0.0
        self.back = asyncio.Event()
        self.asked: list[dict[str, Any]] = []
        self.opened: list[int] = []
        self.joins = True
        self.harness, self.model, self.directory_given = "agent", "", str(directory)
        self.refusal: dict[str, Any] | None = None
        self.before_answer: Callable[[], None] = lambda: None
        self.next_run = 41

    async def wait_up(self) -> None:
        while not self.is_up:
            await self.back.wait()

    def lose(self) -> None:
        self.is_up = False
        self.back.clear()

    def return_(self, *, now: float) -> None:
        self.is_up, self.up_since = True, now
        self.back.set()

    async def ask(self, ask: str, **fields: Any) -> dict[str, Any]:
        if not self.is_up:
            raise LinkLost("no server")
        self.asked.append({"ask": ask, **fields})
        await asyncio.sleep(0)
        self.before_answer()
        if ask == "joined":
            return {"run": fields["run"], "joined": self.joins, "current": True}
        return self.refusal or {"run": self.grant(fields)}

    def grant(self, fields: dict[str, Any]) -> dict[str, Any]:
        run, self.next_run = self.next_run, self.next_run + 1
        self.opened.append(run)
        place = {"agent": fields["agent"], "generation": fields["generation"], "room": "demo", "role": "builder", "mode": "loop"}
        how = {"harness": self.harness, "model": self.model, "directory": self.directory_given, "prompt": "You build."}
        return {"run": run, "attempt": fields["attempt"], "token": f"token of {run}", **place, **how}


class Machine:
    def __init__(self, root: Path, *, said: list[str]) -> None:
        self.root, self.said, self.marker = root, said, f"{root}-{os.getpid()}"
        for name in ("home", "work"):
            (root / name).mkdir()
        self.runs = root / "home" / "runs"
        self.runs.mkdir()
        self.link = FakeLink(root / "work")
        self.around = self.make_around()
        self.supervisors: list[tuple[Supervisor, asyncio.Task[None]]] = []
        self.children: list[subprocess.Popen[bytes]] = []  # of daemons that are gone
        self.program(SLEEPER)

    def make_around(self) -> Surroundings:
        return Surroundings(
            link=self.link,
            reports=Reports(self.root / "home" / "outbox.sqlite3", say=self.said.append),
            book=HarnessBook(self.root / "harnesses.toml"),
            runs=self.runs,
            server="http://server.test",
            say=self.said.append,
            allowed=[self.root / "work"],
            limits=Limits(delay=0.05, deadline=30.0),
            settings=Settings(stop_grace=0.3, stop_hard=5.0),
        )

    def program(self, code: str, *, name: str = "agent", extra: str = "") -> None:
        """What the harness of that name runs: Python text."""
        path = self.root / f"{name}.py"
        path.write_text(code)
        command = json.dumps([sys.executable, str(path), "{role}"])
        (self.root / "harnesses.toml").write_text(f"[harnesses.{name}]\ncommand = {command}\nset = {{MARKER = '{self.marker}'}}\n{extra}")

    def supervise(self, wanted: AgentEntry | None = None, *, agent: int = 7) -> Supervisor:
        supervisor = Supervisor(agent, self.around)
        if wanted is not None:
            supervisor.update(wanted)
        self.supervisors.append((supervisor, asyncio.create_task(supervisor.run())))
        return supervisor

    async def lose_daemon(self) -> None:
        """As a SIGKILL of the daemon would: its coroutines end, its processes do not."""
        await self.cancel()
        self.around.reports.close()
        self.around = self.make_around()

    def adopt_all(self) -> list[Supervisor]:
        found = []
        for directory in unsettled(self.runs):
            info = directory.info(say=self.said.append)
            assert info is not None
            supervisor = Supervisor(info.agent, self.around)
            supervisor.adopt([processes.adopt(directory, info)])
            self.supervisors.append((supervisor, asyncio.create_task(supervisor.run())))
            found.append(supervisor)
        return found

    def reports(self) -> list[dict[str, Any]]:
        return [{"key": report.key, **report.body} for report in self.around.reports.outbox.waiting(limit=1000)]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [report for report in self.reports() if report["report"] == name]

    async def report(self, name: str, *, number: int = 1) -> dict[str, Any]:
        """The so-manieth report of that name, as soon as it is there."""
        await until(
            lambda: len(self.named(name)) >= number,
            what=f"no {name} number {number} in {[one['report'] for one in self.reports()]}: {self.said}",
        )
        return self.named(name)[number - 1]

    async def printed(self) -> None:
        """Some process of ours has said its first word: its Python, its signal handlers and its children are up."""
        await until(lambda: any(path.stat().st_size for path in self.runs.glob("*/output-*.log")))

    def living(self) -> list[int]:
        return marked(self.marker)

    async def over(self, *waits: Awaitable[Any]) -> None:
        await asyncio.wait_for(asyncio.gather(*waits), 20)

    async def cancel(self) -> None:
        for supervisor, task in self.supervisors:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            if supervisor.process is not None and supervisor.process.child is not None:
                self.children.append(supervisor.process.child)
        self.supervisors = []

    async def end(self) -> None:
        await self.cancel()
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for directory in unsettled(self.runs):
            if (shim := directory.identity("shim")) is not None:
                shim.signal(signal.SIGKILL)
        for child in self.children:
            child.wait()
        self.around.reports.close()
