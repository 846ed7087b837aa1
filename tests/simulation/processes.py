"""Simulated processes: each owns the tasks it started, and takes them with it when it is killed."""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .network import Host, Wire

OWNER: ContextVar["SimProcess | None"] = ContextVar("OWNER", default=None)


class SimProcess:
    def __init__(self, name: str, *, host: "Host | None" = None) -> None:
        self.name, self.host = name, host
        self.is_alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.wires: dict[Wire, None] = {}
        self.going = asyncio.Event()  # cleared while it is stopped (SIGSTOP)
        self.going.set()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        token = OWNER.set(self)
        try:
            return asyncio.get_running_loop().create_task(coroutine)
        finally:
            OWNER.reset(token)

    def kill(self) -> None:
        """SIGKILL: nothing of it runs on; its sockets are closed by its host."""
        if not self.is_alive:
            return
        self.is_alive = False
        for wire in list(self.wires):
            wire.client_died()
        for task in list(self.tasks):
            task.cancel()

    def own(self, task: "asyncio.Task[Any]") -> None:
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))


async def nothing() -> None:
    """What is left of a coroutine that a dead process would have started."""


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    """The loop's task factory: a task belongs to the process whose code makes it."""
    context = options.get("context")
    owner = context.get(OWNER) if context is not None else OWNER.get()
    if owner is not None and not owner.is_alive:
        coroutine.close()
        coroutine = nothing()
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    if owner is not None:
        owner.own(task)
    return task
