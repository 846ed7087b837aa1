"""Reports on their way to the server: stored by a thread of their own, so that no disk ever stops the loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machines.daemon.outbox import Outbox, Report
from machines.daemon.state import Say

Answered = Callable[[], None]


class Reports:
    def __init__(self, path: Path, *, say: Say) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")
        self.outbox = Outbox(path, say=say)
        self.say = say
        self.added = asyncio.Event()
        self.emptied = asyncio.Event()
        self.answered: dict[str, Answered] = {}

    async def put(self, report: str, *, key: str, answered: Answered | None = None, **fields: Any) -> None:
        """Returns once it is stored. `answered` is called when the server has acknowledged it, in this life of the daemon."""
        if answered is not None:
            self.answered[key] = answered
        await self.in_thread(self.outbox.put, key, {"report": report, **fields})
        self.emptied.clear()
        self.added.set()

    async def acknowledge(self, key: str) -> None:
        await self.in_thread(self.outbox.acknowledge, key)
        if (answered := self.answered.pop(key, None)) is not None:
            answered()
        if await self.size() == 0:
            self.emptied.set()

    async def waiting(self, *, after: int, limit: int = 100) -> list[Report]:
        found: list[Report] = await self.in_thread(lambda: self.outbox.waiting(after=after, limit=limit))
        return found

    def kept_in_memory(self) -> list[Report]:
        return self.outbox.kept_in_memory()

    async def size(self) -> int:
        return int(await self.in_thread(self.outbox.size))

    async def in_thread(self, act: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.executor, act, *arguments)

    def close(self) -> None:
        self.executor.shutdown(wait=True)
        self.outbox.close()
