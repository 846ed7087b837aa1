"""The server's processes around the real services: the web with its real consumers and API functions, the sweep, the worker."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import OperationalError, connection

from agents import waiters
from agents.consumers import AgentConsumer
from chatroom import ending, jobs
from chatroom import sweep as sweeping
from chatroom.errors import ChatroomError
from chatroom.hub import Topic, hub
from chatroom.pulse import keep_pulse
from machines.consumers import MachineConsumer

from .network import End, Host, Lost, Wire
from .processes import OWNER, SimProcess

if TYPE_CHECKING:
    from .world import World

CONSUMERS: dict[str, type[Any]] = {"/ws/agent/": AgentConsumer, "/ws/machine/": MachineConsumer}


class Killed(BaseException):
    """SIGKILL in the middle of a transaction."""


class Database:
    """Where every act of the server happens: one after the other, each counted, each followed by a look at the invariants."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng("database")
        self.away_until = 0.0
        self.kill_at: int | None = None  # the statement of the next act at which its process is killed

    @property
    def is_away(self) -> bool:
        return self.world.loop.time() < self.away_until

    async def run_in(self, executor: object, call: Callable[[], Any]) -> Any:
        """Stands in for chatroom.db.run_in: threads finish in any order, now and then one is slow."""
        await asyncio.sleep(self.delay())
        return self.act(call, name=name_of(call))

    def delay(self) -> float:
        chance = self.rng.random()
        return 0.0 if chance < 0.5 else 0.01 * chance if chance < 0.97 or self.world.is_calm else 2.0 * self.rng.random()

    def act(self, call: Callable[[], Any], *, name: str) -> Any:
        process = OWNER.get()
        if process is not None and not process.is_alive:
            raise asyncio.CancelledError
        if self.is_away:
            raise OperationalError("the database is away")
        try:
            return self.perform(call)
        except Killed:
            assert process is not None
            self.world.note("killed in a transaction", f"{process.name}, {name}")
            self.world.kill_server_process(process)
            raise asyncio.CancelledError from None
        finally:
            self.world.checker.after_act(name)

    def perform(self, call: Callable[[], Any]) -> Any:
        if self.kill_at is None or OWNER.get() is None:
            return call()
        left, self.kill_at = self.kill_at, None

        def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return execute(sql, params, many, context)

        with connection.execute_wrapper(count):
            return call()


def name_of(call: Any) -> str:
    while isinstance(call, partial):
        call = call.func
    return getattr(call, "__name__", type(call).__name__)


class Web:
    """One web process at a time; the next one begins with nothing but the database."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng("web")
        self.process = SimProcess("web")
        self.wires: dict[Wire, None] = {}
        self.is_up = False
        self.started = 0

    def start(self) -> None:
        self.started += 1
        self.process, self.is_up = SimProcess(f"web {self.started}"), True
        ending.ending = False
        self.process.spawn(keep_pulse())
        self.world.note("web starts")

    def kill(self) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self.process.kill()
        for wire in list(self.wires):
            wire.server_died()
        self.wires.clear()
        forget_process_state()

    async def end(self) -> None:
        """SIGTERM: sockets are closed by the server, in order."""
        if not self.is_up:
            return
        ending.begin()
        for wire in list(self.wires):
            wire.to_server.break_off(1001)
            wire.to_client.send(End(1001))
        await asyncio.sleep(2)
        self.kill()
        ending.ending = False

    def accept(self, wire: Wire) -> None:
        self.wires[wire] = None
        self.process.spawn(self.serve(wire))

    async def serve(self, wire: Wire) -> None:
        consumer = CONSUMERS[wire.path]()
        consumer.scope = {"headers": [(b"authorization", f"Bearer {wire.secret}".encode()), (b"host", b"chatroom.test")], "scheme": "ws"}
        consumer.base_send = wire.from_server
        try:
            await consumer.connect()
            if not wire.is_over:
                code = await self.converse(consumer, wire)
                await consumer.disconnect(code)
        except Exception as error:
            self.world.checker.violated("no unexpected errors", f"{type(consumer).__name__}: {error!r}", error=error)
        finally:
            self.wires.pop(wire, None)

    async def converse(self, consumer: Any, wire: Wire) -> int:
        while True:
            item = await wire.to_server.arrived.get()
            if isinstance(item, End):
                return item.code
            await consumer.receive(text_data=item)

    async def http(self, host: Host, call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """One request. Raises Lost when no answer came, ChatroomError when it was refused."""
        await host.travel()
        if not self.is_up:
            raise Lost("connection refused")
        if not self.world.is_calm and self.rng.random() < 0.04:
            self.world.loop.call_later(3 * self.rng.random(), self.repeat, call)
        answer = await self.finish(self.process.spawn(run_call(call)))
        await host.travel()
        return answer

    def repeat(self, call: Callable[[], Awaitable[Any]]) -> None:
        """The same request once more, whose answer nobody reads."""
        if self.is_up:
            self.process.spawn(run_call(call)).add_done_callback(lambda task: task.cancelled() or task.exception())

    async def finish(self, task: "asyncio.Task[dict[str, Any]]") -> dict[str, Any]:
        await asyncio.wait([task])
        if task.cancelled():
            raise Lost("the server died")
        error = task.exception()
        if isinstance(error, OperationalError):
            raise Lost("503")
        if error is not None and not isinstance(error, ChatroomError):
            self.world.checker.violated("no unexpected errors", repr(error), error=error)
        return task.result()


async def run_call(call: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    response = await call()
    found: dict[str, Any] = json.loads(response.content or b"{}")
    return found


def forget_process_state() -> None:
    """What a web process has in its memory."""
    for table in (waiters._by_agent, waiters._by_room, waiters._rounds, waiters._wakes, hub.callbacks):
        table.clear()  # type: ignore[attr-defined]


def request(secret: str, *, key: str = "") -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return SimpleNamespace(auth=secret, headers=headers, build_absolute_uri=lambda path: f"http://chatroom.test{path}")


class Hints:
    """What travels through the channel layer: lost, late, doubled, never the truth."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng("hints")
        self.lost = 0.1

    def changed(self, topic: Topic) -> None:
        chance = self.rng.random()
        if not self.world.is_calm and chance < self.lost:
            return
        late = 0.0 if chance < 0.8 or self.world.is_calm else 3 * self.rng.random()
        for _ in range(2 if chance > 0.95 else 1):
            self.world.loop.call_later(late, self.wake, topic)

    def wake(self, topic: Topic) -> None:
        if self.world.web.is_up:
            self.world.web.process.spawn(self.call(topic))

    async def call(self, topic: Topic) -> None:
        hub.wake(topic)


class Background:
    """The sweep's and the worker's processes."""

    def __init__(self, world: "World") -> None:
        self.world, self.rng = world, world.rng("background")
        self.sweeper, self.worker = SimProcess("sweep"), SimProcess("worker")
        self.broker: asyncio.Queue[int] = asyncio.Queue()

    def start(self) -> None:
        if not self.sweeper.is_alive or not self.sweeper.tasks:
            self.sweeper = SimProcess("sweep")
            self.sweeper.spawn(self.keep_sweeping())
        if not self.worker.is_alive or not self.worker.tasks:
            self.worker = SimProcess("worker")
            self.worker.spawn(self.keep_working())

    async def keep_sweeping(self) -> None:
        while True:
            await asyncio.sleep(settings.SWEEP_INTERVAL)
            await self.sweep()

    async def sweep(self) -> None:
        """Whole, or step by step with whatever else happens in between: its rows are transactions of their own."""
        started = self.world.loop.time()
        try:
            if self.rng.random() < 0.7:
                self.world.database.act(sweeping.sweep, name="sweep")
            else:
                for step in list(sweeping.STEPS):
                    self.world.database.act(step, name=step.__name__)
                    await asyncio.sleep(0.05 * self.rng.random())
        except OperationalError:
            return
        self.world.checker.swept(started)

    async def keep_working(self) -> None:
        while True:
            job_id = await self.broker.get()
            try:
                self.world.database.act(partial(jobs.run_job, job_id), name="run_job")
            except OperationalError:
                continue

    def send_job(self, job_id: int) -> None:
        """Stands in for the broker: messages get lost, come late, come twice."""
        chance = self.rng.random()
        if chance < 0.1 and not self.world.is_calm:
            return
        for _ in range(2 if chance > 0.9 else 1):
            self.world.loop.call_later(self.rng.random(), self.broker.put_nowait, job_id)
