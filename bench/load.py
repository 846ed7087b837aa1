"""The loads: a steady one at so many messages a second, and bursts as fast as they go."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

BURST_SENDERS = 20


class Target(Protocol):
    async def send(self) -> None: ...
    def hold(self) -> None: ...
    async def until_heard(self) -> float: ...
    async def until_done(self) -> None: ...


async def steady(target: Target, *, count: int, rate: float) -> None:
    """Sends on the beat, whatever the answers do: a slow answer delays no other message."""
    begun, sending = time.monotonic(), []
    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        sending.append(asyncio.create_task(target.send()))
    await asyncio.gather(*sending)
    await target.until_done()


async def burst(target: Target, *, count: int) -> float:
    """Tasks a second, from the first message sent to the last task done."""
    begun, left = time.monotonic(), iter(range(count))

    async def sender() -> None:
        for _ in left:
            await target.send()

    await asyncio.gather(*(sender() for _ in range(BURST_SENDERS)))
    await target.until_done()
    return count / (time.monotonic() - begun)


async def volleys(target: Target, *, count: int, size: int) -> float:
    """Tasks a second from a message sent to its task heard: as many messages at once as agents wait, so that nobody is busy before."""
    taken = 0.0
    for _ in range(count):
        target.hold()
        begun = time.monotonic()
        await asyncio.gather(*(target.send() for _ in range(size)))
        taken += await target.until_heard() - begun
        await target.until_done()
    return count * size / taken


async def interleaved(loads: Sequence[Callable[[int], Awaitable[None]]], *, count: int, turn: int) -> None:
    """Short turns, so that whatever else the machine does meets all alike."""
    for begin in range(0, count, turn):
        for load in loads:
            await load(min(turn, count - begin))
