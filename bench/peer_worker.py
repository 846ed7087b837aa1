"""Procrastinate's worker, a process of its own."""

import asyncio
import sys

from bench.peer import make_app

CONCURRENCY = 50


async def work_for_ever(url: str) -> None:
    app = make_app(url)
    async with app.open_async():
        await app.run_worker_async(queues=["bench"], concurrency=CONCURRENCY, listen_notify=True)


if __name__ == "__main__":
    asyncio.run(work_for_ever(sys.argv[1]))
