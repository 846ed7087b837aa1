"""The daemon's side of a shim: starting one, adopting one, seeing its end at once, ending it for certain."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from machines.daemon import shim
from machines.daemon.runs import ExitRecord, LogReader, RunDirectory, RunInfo
from machines.daemon.state import Identity

POLL = 0.25  # where a pidfd is not to be had, and for what has none
MARKER = "CHATROOM_RUN_DIRECTORY"


class AgentProcess:
    """One run's process, whether this daemon started it or an earlier one did."""

    def __init__(self, directory: RunDirectory, info: RunInfo, *, child: subprocess.Popen[bytes] | None = None) -> None:
        self.directory, self.info, self.child = directory, info, child
        self.is_ours = child is not None  # else adopted
        self.log = LogReader(directory.path)
        self.log_offset = 0
        self.started = time.monotonic()
        self.joined = False
        self.announced = False  # the server knows, or will be told by the outbox, which process it is
        self.identities: dict[str, Identity] = {}

    def identity(self, who: str) -> Identity | None:
        """`shim` or `program`; None until the shim has written it down."""
        if who not in self.identities and (found := self.directory.identity(who)) is not None:
            self.identities[who] = found
        return self.identities.get(who)

    @property
    def pid(self) -> int | None:
        program = self.identity("program")
        return program.pid if program else None

    def is_stopped(self) -> bool:
        program = self.identity("program")
        return program is not None and program.is_stopped()

    def has_ended(self) -> bool:
        return self.directory.exit() is not None

    async def launched(self) -> ExitRecord | None:
        """Returns once the program runs, or with how it failed to."""
        while self.identity("program") is None:
            if (record := self.directory.exit()) is not None:
                return record
            await asyncio.sleep(0.005)
        return None

    async def ended(self) -> ExitRecord:
        """Returns within milliseconds of the program's end; what it left behind may take a moment longer (`gone`)."""
        await self.launched()
        program = self.identity("program")
        if program is not None and self.directory.exit() is None:
            await self.wait_unless(program, lambda: self.directory.exit() is not None)
        while (record := self.directory.exit()) is None:  # the shim is writing it down
            await asyncio.sleep(0.005)
        return record

    async def gone(self) -> None:
        """Returns when the shim has ended, and with it everything that came from the program."""
        who = self.identity("shim")
        if who is not None:
            await self.wait_unless(who, lambda: not self.directory.is_held())
        while self.directory.is_held():
            await asyncio.sleep(0.01)
        if (record := self.directory.exit()) is not None and record.lost:
            self.kill_now()  # its shim may live all the same, in a directory that was removed
            await end_marked(self.directory)
        self.collect()

    async def wait_unless(self, identity: Identity, over: Callable[[], bool]) -> None:
        """Until that process has ended, or the condition holds."""
        with pidfd(identity) as ready:
            while identity.is_alive() and not over():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL * 20 if ready is not never else POLL):
                        await ready()

    def collect(self) -> None:
        """The shim is our child only if we started it; a child must be collected."""
        if self.child is not None:
            self.child.wait()
            self.child = None

    async def stop(self, *, asked: str, grace: float, hard: float) -> None:
        """TERM to all of it, KILL after the grace; returns when nothing is left. `hard` is when the shim itself is no longer trusted."""
        self.directory.ask_to_stop(asked=asked, grace=grace)
        await self.launched()
        if (who := self.identity("shim")) is not None:
            who.signal(signal.SIGTERM)
            who.signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(hard):
                await self.gone()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        self.kill_now()
        await end_marked(self.directory)
        await self.gone()

    def kill_now(self) -> None:
        """Everything at once, the shim last: as long as it lives, whoever is left behind has it as ancestor."""
        who = self.identity("shim")
        if who is not None and who.is_alive():
            for pid in shim.descendants(who.pid):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            who.signal(signal.SIGKILL)
        if self.child is not None:
            self.child.kill()


async def never() -> None:
    """Stands where no descriptor can tell: the caller polls."""
    await asyncio.Event().wait()


@contextlib.contextmanager
def pidfd(identity: Identity) -> Any:
    """Yields a function to wait with; it returns as soon as that very process has ended."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except (OSError, AttributeError):
        yield never
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)

    async def ready() -> None:
        await ended.wait()

    try:
        yield ready
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def start(directory: RunDirectory, info: RunInfo, spec: dict[str, Any]) -> AgentProcess:
    """Forks a shim. The directory and its held lock are there before it, so a daemon killed at any moment starts nothing twice."""
    spec["env"][MARKER] = str(directory.path)
    directory.write_spec(spec)
    lock = directory.take_lock()
    command = [sys.executable, "-S", "-E", str(Path(shim.__file__).absolute()), str(directory.path / "spec.json"), str(lock)]
    try:
        with (directory.path / "shim.log").open("ab") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=[lock], env={}, start_new_session=True
            )
    finally:
        os.close(lock)
    return AgentProcess(directory, info, child=child)


def adopt(directory: RunDirectory, info: RunInfo) -> AgentProcess:
    """What an earlier daemon started: its log is shown from now on, with so much of before that nothing is left out."""
    process = AgentProcess(directory, info)
    process.log_offset = process.log.line_start(max(0, process.log.end() - 4096))
    process.announced = process.pid is not None  # then the hello names it
    return process


def marked(directory: RunDirectory) -> list[psutil.Process]:
    """Processes of that run whose shim is gone, by their environment; used only then."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARKER) == str(directory.path) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


async def end_marked(directory: RunDirectory, *, look: Callable[[RunDirectory], list[psutil.Process]] = marked) -> None:
    """Kills what a killed shim could not end; looks again until nobody is left, less often at what a signal does not end at once."""
    pause = 0.02
    while left := await asyncio.to_thread(look, directory):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        await asyncio.sleep(pause)
        pause = min(pause * 2, 2.0)


async def first_of(*waits: Awaitable[Any]) -> set[int]:
    """Waits for any of them; the indexes of those that are done. The others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return {place for place, task in enumerate(tasks) if task.done()}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
