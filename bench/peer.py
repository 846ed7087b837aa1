"""The measure: Procrastinate on the same PostgreSQL, its own asynchronous worker in a process of its own, woken by LISTEN/NOTIFY."""

import asyncio
import sys
import time
from itertools import count

from procrastinate import App, PsycopgConnector


def make_app(url: str) -> App:
    app = App(connector=PsycopgConnector(conninfo=url.replace("postgres://", "postgresql://", 1)))

    @app.task(name="work", queue="bench")
    async def work(number: int) -> None:
        # The monotonic clock is the same in every process of a host.
        print(number, time.monotonic(), flush=True)

    return app


class Peer:
    def __init__(self, url: str) -> None:
        self.url, self.app = url, make_app(url)
        self.sent: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.numbers = count(1)

    async def start(self) -> None:
        await self.app.open_async()
        await self.app.schema_manager.apply_schema_async()
        self.worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.peer_worker", self.url, stdout=asyncio.subprocess.PIPE
        )
        self.reading = asyncio.get_running_loop().create_task(self.read())
        await self.send()
        await self.until_done()
        self.take()

    async def read(self) -> None:
        assert self.worker.stdout is not None
        async for line in self.worker.stdout:
            number, started = line.split()
            self.started[int(number)] = float(started)

    async def send(self) -> None:
        number = next(self.numbers)
        self.sent[number] = time.monotonic()
        await self.app.configure_task("work", queue="bench").defer_async(number=number)

    def hold(self) -> None:
        """Its jobs end as soon as they start."""

    async def until_heard(self) -> float:
        await self.until_done()
        return max(self.started.values())

    async def until_done(self) -> None:
        async with asyncio.timeout(120):
            while len(self.started) < len(self.sent):
                await asyncio.sleep(0.002)

    def take(self) -> list[float]:
        latencies = [self.started[number] - sent for number, sent in self.sent.items()]
        self.sent.clear()
        self.started.clear()
        return latencies

    async def stop(self) -> None:
        self.worker.terminate()
        await self.worker.wait()
        await self.app.close_async()
