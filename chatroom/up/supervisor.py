"""Starts the parts, starts again what dies, and ends them all."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from chatroom.client.errors import ClientError
from chatroom.client.server import Server
from chatroom.up.console import CannotStart, report
from chatroom.up.home import Home
from chatroom.up.logs import LogTail, last_lines
from chatroom.up.part import Part, describe_exit

# Together less than the ten seconds in which everything has to be gone. Who ends first has a head start, and the others' time as well.
HEAD_START, END_GRACE, END_LAST_GRACE = 2.0, 5.0, 1.5
LOOK_INTERVAL = 0.5
ABORT_PATIENCE = 10.0


class Supervisor:
    def __init__(self, *, home: Home) -> None:
        self.home = home
        self.parts: list[Part] = []
        self.ending = asyncio.Event()
        self.serving = False
        self.failed_start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def add(self, part: Part) -> None:
        self.parts.append(part)
        self.tasks[part.name] = asyncio.create_task(self._keep_running(part), name=part.name)

    def listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.end)
        loop.add_signal_handler(signal.SIGHUP, self.hang_up)

    def end(self) -> None:
        """The first time: orderly; the second time: at once."""
        if self.ending.is_set():
            for part in self.parts:
                self._signal([part], part.kill_signal)
        self.ending.set()

    def hang_up(self) -> None:
        """Aborts every run on every machine, as `abort_runs` does, and stays up."""
        self.tasks["hang-up"] = asyncio.create_task(asyncio.to_thread(self._abort_runs))

    def _abort_runs(self) -> None:
        server = Server(self.home.read_url(), self.home.read_owner_token(), patience=ABORT_PATIENCE)
        try:
            count = len(server.post("commands/abort_runs")["commands"])
        except (ClientError, OSError, ValueError) as error:
            report(f"SIGHUP: the runs could not be aborted ({error}); the server stays up")
        else:
            report(f"SIGHUP: {count} run{'' if count == 1 else 's'} to abort; the server stays up")
        finally:
            server.close()

    async def stop(self) -> None:
        """Asks every part to end, and sees to it that each is gone."""
        self.ending.set()
        if first := [part for part in self.parts if part.ends_first]:
            self._signal(first, signal.SIGTERM)
            await asyncio.wait([self.tasks[part.name] for part in first], timeout=HEAD_START)
        await self._end_parts([part for part in self.parts if not part.ends_last], grace=END_GRACE)
        await self._end_parts([part for part in self.parts if part.ends_last], grace=END_LAST_GRACE)

    async def _end_parts(self, parts: Sequence[Part], *, grace: float) -> None:
        tasks = [self.tasks[part.name] for part in parts]
        if not tasks:
            return
        self._signal([part for part in parts if not part.ends_first], signal.SIGTERM)
        _done, late = await asyncio.wait(tasks, timeout=grace)
        if late:
            self._signal(parts, signal.SIGKILL)
            await asyncio.wait(tasks, timeout=2)

    def _signal(self, parts: Sequence[Part], number: signal.Signals) -> None:
        for part in parts:
            if part.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(part.pid, number)

    async def _keep_running(self, part: Part) -> None:
        tail = asyncio.create_task(self._repeat_important(part))
        try:
            while not self.ending.is_set():
                began = time.monotonic()
                returncode = await self._run_once(part)
                if part.last_exit is not None and returncode == part.last_exit[0]:
                    report(f"{part.name}: ended for good ({describe_exit(returncode)}): {part.last_exit[1]}")
                    return
                if not self.ending.is_set():
                    await self._after_death(part, returncode, lived=time.monotonic() - began)
        finally:
            tail.cancel()

    async def _run_once(self, part: Part) -> int:
        with self.home.open_log(part.name) as output:
            process = await asyncio.create_subprocess_exec(
                *part.bound_command(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **part.environment},
                # Ctrl-C in the terminal is ours alone: the parts are ended in order.
                start_new_session=True,
            )
        part.pid = process.pid
        pid_file = self.home.pid_file(part.name)
        pid_file.write_text(f"{process.pid}\n")
        if part.backoff.failures:
            report(f"{part.name}: started again (PID {process.pid})")
        returncode = await process.wait()
        part.pid = None
        pid_file.unlink(missing_ok=True)
        return returncode

    async def _after_death(self, part: Part, returncode: int, *, lived: float) -> None:
        """Says it, and waits as long as the back-off wants, or until everything ends."""
        delay = part.backoff.after(lived=lived)
        log = self.home.log_file(part.name)
        how = f"ended unexpectedly ({describe_exit(returncode)})"
        report(f"{part.name}: {how}, is started again in {delay:g} s; its output: {self.home.shown(log)}")
        if returncode > 0:
            for line in last_lines(log, count=3):
                report(f"{part.name}: | {line}")
        if part.backoff.failures >= 3 and not self.serving and not self.failed_start.done():
            self.failed_start.set_exception(CannotStart(self._why_not(part, returncode, log)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), timeout=delay)

    def _why_not(self, part: Part, returncode: int, log: Path) -> str:
        lines = "\n".join(f"  | {line}" for line in last_lines(log, count=15))
        return f"{part.name} ended {part.backoff.failures} times ({describe_exit(returncode)}); the end of {self.home.shown(log)}:\n{lines}"

    async def _repeat_important(self, part: Part) -> None:
        tail = LogTail(self.home.log_file(part.name))
        while not self.ending.is_set():
            for line in tail.new_lines():
                report(f"{part.name}: {line}")
            with contextlib.suppress(OSError):  # a full disk: tried again
                self.home.set_log_aside(part.name)
            await asyncio.sleep(LOOK_INTERVAL)
