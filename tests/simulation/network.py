"""The way between a host and the server: it delays, it is cut, it loses answers; what one connection carries stays in order."""

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.frames import Close
from websockets.http11 import Response

from .processes import OWNER, SimProcess

if TYPE_CHECKING:
    from .world import World

PING_TIMEOUT = 20.0  # after which either side of a cut connection gives it up


class Lost(Exception):
    """No answer. Whether the server has acted, nobody here knows."""


class End:
    """The last thing that comes out of a pipe."""

    def __init__(self, code: int) -> None:
        self.code = code


class Host:
    def __init__(self, name: str, *, rng: Random) -> None:
        self.name, self.rng = name, rng
        self.cut_until = 0.0
        self.clock_skew = 0.0
        self.is_calm = False
        self.wires: dict[Wire, None] = {}

    @property
    def is_cut(self) -> bool:
        return asyncio.get_running_loop().time() < self.cut_until

    def delay(self) -> float:
        chance = self.rng.random()
        return 0.002 + 0.02 * chance if chance < 0.94 or self.is_calm else 4.0 * self.rng.random()

    def cut(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.cut_until = max(self.cut_until, loop.time() + seconds)
        loop.call_later(PING_TIMEOUT, self.give_up_wires)

    def heal(self) -> None:
        self.cut_until = 0.0

    def give_up_wires(self) -> None:
        if self.is_cut:
            for wire in list(self.wires):
                wire.drop()

    def drop_wires(self) -> None:
        """A router that forgot its connections: the host notices at once, the server too, or only when its pings stay unanswered."""
        server_notices = self.rng.random() < 0.5
        for wire in list(self.wires):
            wire.drop() if server_notices else wire.half_open()

    async def travel(self) -> None:
        """One way of one request. Raises Lost when it does not arrive."""
        await asyncio.sleep(self.delay())
        if self.is_cut:
            await asyncio.sleep(min(10.0, max(0.0, self.cut_until - asyncio.get_running_loop().time())))
            raise Lost("the way is cut")
        if not self.is_calm and self.rng.random() < 0.03:
            await asyncio.sleep(1 + 9 * self.rng.random())
            raise Lost("lost on its way")


class Pipe:
    """One direction of a connection."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.travelling: deque[tuple[float, Any]] = deque()
        self.arrived: asyncio.Queue[Any] = asyncio.Queue()
        self.timer: asyncio.TimerHandle | None = None
        self.is_broken = False

    def send(self, item: Any) -> None:
        if self.is_broken:
            return
        now = asyncio.get_running_loop().time()
        last = self.travelling[-1][0] if self.travelling else now
        self.travelling.append((max(last, now + self.host.delay()), item))
        self.plan()

    def plan(self) -> None:
        if self.timer is None and self.travelling:
            at = max(self.travelling[0][0], self.host.cut_until)
            self.timer = asyncio.get_running_loop().call_at(at, self.deliver)

    def deliver(self) -> None:
        self.timer = None
        now = asyncio.get_running_loop().time()
        while self.travelling and self.travelling[0][0] <= now and not self.host.is_cut and not self.is_broken:
            self.arrived.put_nowait(self.travelling.popleft()[1])
        if not self.is_broken:
            self.plan()

    def break_off(self, code: int) -> None:
        """What travels is lost."""
        if not self.is_broken:
            self.is_broken = True
            self.travelling.clear()
            self.arrived.put_nowait(End(code))


class Wire:
    """One WebSocket connection, seen from both ends."""

    def __init__(self, host: Host, path: str, secret: str, *, process: SimProcess | None) -> None:
        self.host, self.path, self.secret, self.process = host, path, secret, process
        self.to_server, self.to_client = Pipe(host), Pipe(host)
        self.opened: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.is_over = False
        host.wires[self] = None
        if process is not None:
            process.wires[self] = None

    async def from_server(self, message: Any) -> None:
        """What the consumer sends."""
        match message["type"]:
            case "websocket.accept":
                self.answer("accepted")
            case "websocket.send":
                self.to_client.send(message["text"])
            case "websocket.close":
                self.answer("refused")
                self.to_client.send(End(message.get("code") or 1000))
                self.to_server.break_off(message.get("code") or 1000)
                self.forget()

    def answer(self, handshake: str) -> None:
        if not self.opened.done():
            self.opened.set_result(handshake)

    def client_closes(self, code: int) -> None:
        self.to_server.send(End(code))
        self.to_client.break_off(code)
        self.forget()

    def client_died(self) -> None:
        self.client_closes(1006)

    def power_lost(self) -> None:
        """Nobody says goodbye."""
        self.half_open()

    def half_open(self) -> None:
        """Only the client's end is gone: the server's own pings notice."""
        self.answer("lost")
        self.to_client.break_off(1006)
        asyncio.get_running_loop().call_later(PING_TIMEOUT, self.to_server.break_off, 1006)
        self.forget()

    def drop(self) -> None:
        self.answer("lost")
        self.to_client.break_off(1006)
        self.to_server.break_off(1006)
        self.forget()

    def server_died(self) -> None:
        self.answer("lost")
        self.to_client.send(End(1006))
        self.to_server.is_broken = True
        self.forget()

    def forget(self) -> None:
        self.is_over = True
        self.host.wires.pop(self, None)
        if self.process is not None:
            self.process.wires.pop(self, None)


class ClientSocket:
    """The client's end, as the package websockets offers it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.ended: End | None = None
        self.closed = asyncio.Event()

    async def send(self, text: str) -> None:
        await self.going()
        if self.ended is not None or self.wire.to_client.is_broken:
            raise self.error(self.ended or End(1006))
        self.wire.to_server.send(text)

    async def recv(self) -> str:
        if self.ended is not None:
            raise self.error(self.ended)
        item = await self.wire.to_client.arrived.get()
        await self.going()
        if isinstance(item, End):
            self.ended = item
            self.closed.set()
            raise self.error(item)
        return str(item)

    async def going(self) -> None:
        if self.wire.process is not None:
            await self.wire.process.going.wait()

    def error(self, end: End) -> Exception:
        if end.code == 1000:
            return ConnectionClosedOK(Close(1000, ""), None)
        return ConnectionClosedError(None if end.code == 1006 else Close(end.code, ""), None)

    def __aiter__(self) -> "ClientSocket":
        return self

    async def __anext__(self) -> str:
        try:
            return await self.recv()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if not self.wire.is_over:
            self.wire.client_closes(code)
        self.closed.set()

    async def wait_closed(self) -> None:
        while self.ended is None and not self.closed.is_set():
            try:
                await self.recv()
            except (ConnectionClosedOK, ConnectionClosedError):
                return


class Dial:
    """`async with connect(...)`, of the process whose code is running."""

    def __init__(self, world: "World", path: str, secret: str, *, host: Host | None = None) -> None:
        process = OWNER.get()
        self.world, self.path, self.secret, self.process = world, path, secret, process
        found = host or (process.host if process is not None else None)
        assert found is not None
        self.host = found
        self.socket: ClientSocket | None = None

    async def __aenter__(self) -> ClientSocket:
        try:
            await self.host.travel()
        except Lost as lost:
            raise OSError(str(lost)) from None
        if not self.world.web.is_up:
            raise OSError("connection refused")
        wire = Wire(self.host, self.path, self.secret, process=self.process)
        self.world.web.accept(wire)
        await asyncio.wait([wire.opened], timeout=10)
        handshake = wire.opened.result() if wire.opened.done() else "lost"
        if handshake != "accepted":
            wire.drop()
            raise InvalidStatus(Response(403, "Forbidden", Headers(), b"")) if handshake == "refused" else OSError("no answer")
        self.socket = ClientSocket(wire)
        return self.socket

    async def __aexit__(self, *_: object) -> None:
        if self.socket is not None:
            await self.socket.close()


def connector(world: "World") -> Callable[..., Dial]:
    def connect(url: str, *, additional_headers: dict[str, str], **_: Any) -> Dial:
        return Dial(world, "/ws/machine/", additional_headers["Authorization"].removeprefix("Bearer "))

    return connect
