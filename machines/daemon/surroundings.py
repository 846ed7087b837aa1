"""What every supervisor of one daemon shares."""

import asyncio
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from machines.daemon.brake import Brake
from machines.daemon.errors import BadConfiguration, StartRefused
from machines.daemon.harnesses import Harness, load
from machines.daemon.messages import Settings
from machines.daemon.policy import Limits
from machines.daemon.process import AgentProcess
from machines.daemon.reports import Reports
from machines.daemon.state import Say

LAUNCHES_AT_ONCE = 4


class Link(Protocol):
    """The way to the server; reports go through `Reports`, which outlive it."""

    @property
    def is_up(self) -> bool: ...

    @property
    def up_since(self) -> float:
        """Monotonic time at which the connection was last made; supervisors give agents their whole deadline from there."""

    async def wait_up(self) -> None: ...

    async def ask(self, ask: str, **fields: Any) -> dict[str, Any]:
        """The server's answer; raises `LinkLost` when the connection ends before it came."""


class HarnessBook:
    """The machine's TOML, read again whenever it has changed; while it is broken, nothing new is started and the reason is said."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp: tuple[int, int] | None = None
        self.entries: dict[str, Harness] = {}
        self.broken = ""
        self.reading = threading.Lock()  # several agents are checked at once, each in a thread

    def read(self) -> bool:
        """True when there is something new."""
        with self.reading:
            stamp = self.look()
            if stamp == self.stamp:
                return False
            try:
                self.entries, self.broken = load(self.path), ""
            except BadConfiguration as error:
                self.broken = str(error)
            self.stamp = stamp
            return True

    def look(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)

    def find(self, name: str) -> Harness:
        self.read()
        if self.broken:
            raise StartRefused(self.broken)
        if (harness := self.entries.get(name)) is None:
            raise StartRefused(f"no harness {name} in {self.path}; there are: {', '.join(sorted(self.entries)) or 'none'}")
        return harness


@dataclass
class Surroundings:
    link: Link
    reports: Reports
    book: HarnessBook
    runs: Path
    server: str
    say: Say
    allowed: list[Path]
    limits: Limits = field(default_factory=Limits)
    settings: Settings = field(default_factory=Settings)
    brake: Brake = field(default_factory=Brake)
    launching: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LAUNCHES_AT_ONCE))
    watch_log: Callable[[AgentProcess], None] = lambda process: None
    agents: Callable[[], int] = lambda: 1  # how many should be running on this machine
    now: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random

    async def deadline(self, process: AgentProcess) -> None:
        """Returns when it should long have joined. Time without a server does not count: it could not."""
        while True:
            await self.link.wait_up()
            since = max(process.started, self.link.up_since)
            if (left := since + self.limits.deadline - self.now()) <= 0:
                return
            await asyncio.sleep(left)
