"""A server in this process that speaks /ws/machine/ as docs/protocol-machine.md says, with the test deciding what is wanted."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tests.daemon.fakes import until

TOKEN = "machine-token"


def agent_entry(**changes: Any) -> dict[str, Any]:
    plain = {"agent": 7, "room": "demo", "role": "builder", "mode": "loop", "desired": "running", "generation": 1}
    return {**plain, "exhausted": None, "command": None, "run": None, "joined": False, "history": [], **changes}


class FakeServer:
    def __init__(self) -> None:
        self.server: Server | None = None
        self.port = 0
        self.socket: ServerConnection | None = None
        self.connections = 0
        self.said: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.agents: list[dict[str, Any]] = []
        self.harness, self.directory = "agent", ""
        self.refusal: dict[str, Any] | None = None
        self.rejects: set[str] = set()
        self.acknowledges = True
        self.status: int | None = None
        self.next_run = 41
        self.on_report: Callable[[dict[str, Any]], Awaitable[None]] = self.do_nothing
        self.settings: dict[str, float] = {"restart_delay": 0.05, "stop_grace": 0.5, "stop_hard": 5}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = await serve(self.talk, "127.0.0.1", self.port, process_request=self.admit)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self.server is not None:
            self.server.close()
            await self.server.wait_closed()
            self.server = None

    def admit(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.status is not None:
            return connection.respond(self.status, "no")
        return None if request.headers["Authorization"] == f"Bearer {TOKEN}" else connection.respond(403, "no")

    async def talk(self, socket: ServerConnection) -> None:
        self.connections += 1
        self.socket = socket
        with contextlib.suppress(ConnectionClosed):
            async for text in socket:
                message = json.loads(text)
                self.said.append(message)
                await self.answer(socket, message)

    async def answer(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello" if self.refusal is not None:
                await socket.send(json.dumps({"type": "refused", "error": self.refusal}))
                await socket.close(4409)
            case "hello":
                welcome = {"type": "welcome", "protocol": 1, "machine": {"id": 3, "name": "laptop-7"}, "settings": self.settings}
                await socket.send(json.dumps(welcome))
            case "replayed":
                await socket.send(json.dumps({"type": "snapshot", "agents": self.agents}))
            case "report":
                await self.take_report(socket, message)
            case "ask":
                await socket.send(json.dumps({"type": "answer", "id": message["id"], **self.answer_ask(message)}))
            case "heartbeat":
                await socket.send('{"type": "heartbeat", "superseded": []}')
            case "goodbye":
                await socket.close(1000)

    async def take_report(self, socket: ServerConnection, message: dict[str, Any]) -> None:
        if message["key"] not in {report["key"] for report in self.reports}:  # as the server does: what comes again is only acknowledged
            self.reports.append(message)
            await self.on_report(message)
        if self.acknowledges:
            answer = "rejected" if message["report"] in self.rejects else "ok"
            await socket.send(json.dumps({"type": "ack", "key": message["key"], "answer": answer}))

    def answer_ask(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["ask"] == "joined":
            return {"run": message["run"], "joined": True, "current": True}
        run, self.next_run = self.next_run, self.next_run + 1
        place = {"agent": message["agent"], "generation": message["generation"], "room": "demo", "role": "builder", "mode": "loop"}
        how = {"harness": self.harness, "model": "", "directory": self.directory, "prompt": "You build."}
        return {"run": {"run": run, "attempt": message["attempt"], "token": "t", **place, **how}}

    async def do_nothing(self, report: dict[str, Any]) -> None:
        """What a test may replace."""

    async def tell(self, **message: Any) -> None:
        assert self.socket is not None
        await self.socket.send(json.dumps(message))

    def heard(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.said if message["type"] == kind]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [report for report in self.reports if report["report"] == name]

    async def report(self, name: str, *, number: int = 1) -> dict[str, Any]:
        try:
            await until(lambda: len(self.named(name)) >= number)
        except AssertionError:
            raise AssertionError(f"no {name} number {number} in {[report['report'] for report in self.reports]}") from None
        return self.named(name)[number - 1]

    async def hears(self, kind: str, *, number: int = 1) -> dict[str, Any]:
        await until(lambda: len(self.heard(kind)) >= number, what=f"no {kind} number {number}")
        return self.heard(kind)[number - 1]


async def serving() -> AsyncIterator[FakeServer]:
    server = FakeServer()
    await server.start()
    yield server
    await asyncio.wait_for(server.stop(), 10)
