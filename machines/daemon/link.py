"""The connection to the server: made again for ever. What must not be lost is in the outbox, everything else is a hint."""

import asyncio
import contextlib
import json
import random
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from machines.daemon.errors import LinkLost, Refused
from machines.daemon.messages import PROTOCOL, BadMessage
from machines.daemon.outbox import Report
from machines.daemon.reports import Reports
from machines.daemon.state import Say

SIGN_OF_LIFE = 2.0
PING_INTERVAL, PING_TIMEOUT = 5.0, 20.0
FIRST_TRY, SLOWEST_TRY = 5.0, 30.0
ANSWER_WITHIN = 30.0
OPENING_WITHIN = 15.0
PATIENCE_AT_FIRST = 15.0  # a first start waits that long for the other instance to be gone
PATIENCE_LATER = 60.0  # a refusal of somebody who was welcome before may be a passing fault in between

Handler = Callable[[dict[str, Any]], Awaitable[None]]


class ServerLink:
    def __init__(
        self, *, server: str, token: str, reports: Reports, say: Say, hello: Callable[[], dict[str, Any]], handle: Handler
    ) -> None:
        self.server, self.token, self.reports, self.say = server, token, reports, say
        self.hello, self.handle = hello, handle
        self.socket: ClientConnection | None = None
        self.up_since = 0.0
        self.lost_since: float | None = time.monotonic()
        self.up = asyncio.Event()
        self.was_welcome = self.was_up = False
        self.refused_since: float | None = None
        self.tries = 0
        self.asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.last_ask = 0
        self.said = ""
        self.retry_after = 0.0
        self.snapshot_came = asyncio.Event()
        self.in_flight: set[str] = set()
        self.acknowledged = asyncio.Event()

    @property
    def is_up(self) -> bool:
        return self.up.is_set()

    async def wait_up(self) -> None:
        await self.up.wait()

    # Staying connected

    async def run(self) -> None:
        """Until it is cancelled; raises `Refused` when the server does not want this daemon."""
        while True:
            try:
                await self.connect_once()
                reason = "the connection ended"
            except (OSError, TimeoutError, WebSocketException, LinkLost, BadMessage) as error:
                reason = describe(error)
                self.note_refusal(error)
            except Refused as refused:
                self.be_patient(refused)
                reason = str(refused)
            except Exception as error:  # whatever it is: a daemon without a connection must try again
                self.say(f"unexpected error in the connection\n{traceback.format_exc()}")
                reason = repr(error)
            self.note_loss(reason)
            await asyncio.sleep(self.pause())

    def note_loss(self, reason: str) -> None:
        """Said once per outage."""
        if self.lost_since is None:
            self.lost_since = time.monotonic()
        if not self.said:
            self.said = f"no connection to {self.server}: {reason}. Trying for ever; agents go on meanwhile"
            self.say(self.said)

    def pause(self) -> float:
        """Full jitter: first within 5 s, then 1 → 30 s, so that a fleet does not come back in one instant."""
        self.tries += 1
        most = FIRST_TRY if self.tries == 1 else min(SLOWEST_TRY, 2.0 ** (self.tries - 1))
        told, self.retry_after = self.retry_after, 0.0
        return told + random.uniform(0.05, most)

    def note_refusal(self, error: Exception) -> None:
        if isinstance(error, InvalidStatus) and error.response.status_code in {401, 403}:
            self.be_patient(
                Refused("not_allowed", f"{self.server} does not know this machine's token (it was revoked, or is of another server)")
            )
        else:
            self.refused_since = None

    def be_patient(self, refused: Refused) -> None:
        """Raises when the refusal is to be believed."""
        if refused.code == "revoked":
            raise refused
        now = time.monotonic()
        if self.refused_since is None:
            self.refused_since = now
        if refused.code == "second_instance" and self.was_welcome:
            return  # ours was the first: wait until the other one has ended
        patience = PATIENCE_AT_FIRST if refused.code == "second_instance" else PATIENCE_LATER if self.was_welcome else 0.0
        if now - self.refused_since >= patience:
            raise refused

    # One connection

    async def connect_once(self) -> None:
        async with connect(
            socket_url(self.server),
            additional_headers={"Authorization": f"Bearer {self.token}"},
            ping_interval=PING_INTERVAL,
            ping_timeout=PING_TIMEOUT,
            open_timeout=OPENING_WITHIN,
            close_timeout=2,
            max_size=8 * 1024 * 1024,
            proxy=None if is_local(self.server) else True,
        ) as socket:
            tasks: list[asyncio.Task[None]] = []
            try:
                await self.introduce(socket)
                tasks += [asyncio.create_task(part) for part in (self.receive(socket), self.show_life(socket), self.converse(socket))]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                self.go_down()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def introduce(self, socket: ClientConnection) -> None:
        self.snapshot_came.clear()
        self.in_flight.clear()
        await socket.send(json.dumps({"type": "hello", "protocol": PROTOCOL, **self.hello()}))
        async with asyncio.timeout(OPENING_WITHIN):
            message = parse(await socket.recv())
        self.raise_if_final(message)
        if message["type"] != "welcome":
            raise BadMessage(f"the server said {message['type']}, expected welcome")
        self.was_welcome, self.refused_since = True, None
        self.socket = socket  # hints may go; questions wait for the snapshot
        await self.handle(message)

    def raise_if_final(self, message: dict[str, Any]) -> None:
        if message["type"] == "retry":
            self.retry_after = float(message.get("after") or 0)
            raise LinkLost(str(message.get("message") or "the server cannot serve this now"))
        if message["type"] == "refused":
            error = message.get("error") or {}
            raise Refused(str(error.get("code")), str(error.get("message") or "the server refused this daemon"))

    async def converse(self, socket: ClientConnection) -> None:
        """First what happened meanwhile, then what is wanted now, then everything as it comes."""
        after = await self.send_waiting(socket, after=0)
        while self.in_flight:
            self.acknowledged.clear()
            async with asyncio.timeout(ANSWER_WITHIN):
                await self.acknowledged.wait()
        await socket.send('{"type": "replayed"}')
        async with asyncio.timeout(ANSWER_WITHIN):
            await self.snapshot_came.wait()
        self.go_up()
        while True:
            self.reports.added.clear()
            after = await self.send_waiting(socket, after=after)
            await self.reports.added.wait()

    async def send_waiting(self, socket: ClientConnection, *, after: int) -> int:
        while page := await self.reports.waiting(after=after):
            for report in page:
                await self.send_report(socket, report)
            after = page[-1].seq
        for report in self.reports.kept_in_memory():
            if report.key not in self.in_flight:
                await self.send_report(socket, report)
        return after

    async def send_report(self, socket: ClientConnection, report: Report) -> None:
        body = dict(report.body)
        age = max(0.0, time.time() - body.pop("happened_at", time.time()))
        self.in_flight.add(report.key)
        await socket.send(json.dumps({"type": "report", "key": report.key, "age": round(age, 3), **body}))

    async def show_life(self, socket: ClientConnection) -> None:
        while True:
            await socket.send('{"type": "alive"}')
            await asyncio.sleep(SIGN_OF_LIFE)

    async def receive(self, socket: ClientConnection) -> None:
        async for text in socket:
            message = parse(text)
            self.raise_if_final(message)
            match message["type"]:
                case "ack":
                    await self.take_ack(message)
                case "answer":
                    self.take_answer(message)
                case "snapshot":
                    await self.handle(message)
                    self.snapshot_came.set()
                case _:
                    await self.handle(message)

    async def take_ack(self, message: dict[str, Any]) -> None:
        key = str(message.get("key"))
        await self.reports.acknowledge(key)
        self.in_flight.discard(key)
        self.acknowledged.set()
        if message.get("answer") == "rejected":
            await self.handle({**message, "type": "rejected"})

    def take_answer(self, message: dict[str, Any]) -> None:
        future = self.asked.pop(message.get("id") or 0, None)
        if future is not None and not future.done():
            future.set_result(message)

    def go_up(self) -> None:
        self.up_since, self.tries = time.monotonic(), 0
        self.lost_since = None
        if self.said or not self.was_up:
            self.say(f"{self.server} is back" if self.was_up else f"connected to {self.server}")
        self.said, self.was_up = "", True
        self.up.set()

    def go_down(self) -> None:
        self.up.clear()
        self.socket = None
        for future in self.asked.values():
            if not future.done():
                future.set_exception(LinkLost(f"the connection to {self.server} ended"))
        self.asked.clear()

    # For the daemon and its supervisors

    async def ask(self, ask: str, **fields: Any) -> dict[str, Any]:
        socket = self.socket
        if socket is None or not self.is_up:
            raise LinkLost(f"no connection to {self.server}")
        self.last_ask += 1
        number = self.last_ask
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.asked[number] = future
        try:
            await socket.send(json.dumps({"type": "ask", "id": number, "ask": ask, **fields}))
            async with asyncio.timeout(ANSWER_WITHIN):
                return await future
        except ConnectionClosed as error:
            self.note_closed(socket)
            raise LinkLost(str(error)) from None
        except TimeoutError:
            # The run it may have opened is found out by saying hello again.
            self.note_closed(socket)
            await socket.close(1011, "an answer is overdue")
            raise LinkLost(f"{self.server} did not answer within {ANSWER_WITHIN:g} s") from None
        finally:
            self.asked.pop(number, None)

    def note_closed(self, socket: ClientConnection) -> None:
        """At once: a failing send does not give way to the tasks that would notice, and whoever asks waits for the next connection."""
        if self.socket is socket:
            self.up.clear()

    async def hint(self, message: dict[str, Any]) -> bool:
        """False when it went nowhere."""
        socket = self.socket
        if socket is None:
            return False
        try:
            await socket.send(json.dumps(message))
        except ConnectionClosed:
            return False
        return True

    async def say_goodbye(self, *, keep_agents: bool) -> None:
        socket = self.socket
        if socket is not None and await self.hint({"type": "goodbye", "keep_agents": keep_agents}):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(3):
                    await socket.wait_closed()


def parse(text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("type"), str):
        raise BadMessage(f"the server said {text[:80]!r}, expected an object with a type")
    return found


def socket_url(server: str) -> str:
    return f"ws{server.removeprefix('http')}/ws/machine/"


def is_local(server: str) -> bool:
    return urlsplit(server).hostname in {"localhost", "127.0.0.1", "::1"}


def describe(error: Exception) -> str:
    if isinstance(error, InvalidStatus):
        return f"it answered {error.response.status_code}"
    if isinstance(error, ConnectionClosed):
        return error.rcvd.reason or f"it was closed ({error.rcvd.code})" if error.rcvd else "it was cut"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
