"""Signs of life that come while others are being written travel together: one transaction, one wait for the disk, however many."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, ParamSpec, TypeVar

from django.db import DatabaseError, InterfaceError

from .db import in_liveness

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")
TOGETHER = 500


class Gathered(Generic[T, R]):
    """One call for each, one `act` for all that wait, on the thread for liveness. It answers in the order of what it was given.

    An answer that is an exception is raised where that one was called; what `act` itself raises concerns them all.
    """

    def __init__(self, act: Callable[[list[T]], Sequence[R | Exception]]) -> None:
        self.act = act
        self.waiting: list[tuple[T, asyncio.Future[R]]] = []
        self.worker: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        loop = asyncio.get_running_loop()
        if self.worker is None or self.worker.done() or self.worker.get_loop() is not loop:
            self.waiting, self.worker = [], loop.create_task(self.work())
        answer: asyncio.Future[R] = loop.create_future()
        self.waiting.append((item, answer))
        return await answer

    async def work(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[:TOGETHER], self.waiting[TOGETHER:]
            # Whose socket has ended meanwhile does not show life.
            await self.do([(item, answer) for item, answer in batch if not answer.done()])

    async def do(self, batch: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            results = await in_liveness(self.act, [item for item, _ in batch])
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        except BaseException:
            for _, answer in [*batch, *self.waiting]:
                answer.cancel()
            raise
        else:
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():
                    answer.set_exception(result) if isinstance(result, Exception) else answer.set_result(result)


def attempted(act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | Exception:
    """What the database says of one of them must not befall the others."""
    try:
        return act(*args, **kwargs)
    except (DatabaseError, InterfaceError) as error:
        return error
