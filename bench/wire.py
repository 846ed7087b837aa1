"""The load client's wires: kept-alive HTTP connections and WebSockets, with little code between a byte and its time."""

import asyncio
import json
import os
from base64 import b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from chatroom.client.frames import CLOSE, PING, PONG, TEXT, FrameReader, encode_frame

Message = dict[str, Any]


class Refused(Exception):
    """The server answered with something that this load must never see."""


class HttpConnection(asyncio.Protocol):
    """One request at a time, on a connection that stays."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = bytearray()
        self.answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answer and not self.answer.done():
            self.answer.set_exception(exc or ConnectionResetError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, rest = self.buffer.partition(b"\r\n\r\n")
        if not separator or self.answer is None or self.answer.done():
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        size = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), None)
        if size is None:
            self.answer.set_exception(Refused(f"an answer without its length: {head[:200]!r}"))
            return
        if len(rest) >= size:
            self.buffer.clear()
            self.answer.set_result((int(first.split(" ")[1]), bytes(rest[:size])))

    async def request(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return await self.answer


class Api:
    """A person's calls; as many connections as calls are under way at once."""

    def __init__(self, url: str, token: str) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.token = parts.hostname or "127.0.0.1", parts.port or 80, token
        self.idle: list[HttpConnection] = []

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = self.idle.pop() if self.idle else await self.open()
        head = (
            f"{method} /api/v1/{path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Type: application/json\r\nIdempotency-Key: {os.urandom(12).hex()}\r\n"
        )
        status, answer = await connection.request(head.encode(), b"" if body is None else json.dumps(body).encode())
        self.idle.append(connection)
        if status >= 300:
            raise Refused(f"{method} {path}: {status} {answer[:300]!r}")
        return json.loads(answer)

    async def open(self) -> HttpConnection:
        return (await asyncio.get_running_loop().create_connection(HttpConnection, self.host, self.port))[1]

    def close(self) -> None:
        for connection in self.idle:
            connection.transport.close()


class Socket(asyncio.Protocol):
    """A WebSocket of JSON messages, each passed to `heard`."""

    transport: asyncio.Transport

    def __init__(self, head: bytes, heard: Callable[[Message], None]) -> None:
        self.head, self.heard = head, heard
        self.reader, self.answer = FrameReader(), bytearray()
        self.is_open = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_open.done():
            self.is_open.set_exception(exc or ConnectionResetError("the server hung up"))

    def data_received(self, data: bytes) -> None:
        if not self.is_open.done():
            data = self.read_answer(data)
        self.reader.feed(data)
        while (found := self.reader.next_message()) is not None:
            opcode, payload = found
            if opcode == TEXT:
                self.heard(json.loads(payload))
            elif opcode == PING:
                self.transport.write(encode_frame(PONG, payload))
            elif opcode == CLOSE:
                self.transport.close()

    def read_answer(self, data: bytes) -> bytes:
        self.answer += data
        head, separator, rest = bytes(self.answer).partition(b"\r\n\r\n")
        if not separator:
            return b""
        if b" 101 " not in head.split(b"\r\n")[0]:
            self.is_open.set_exception(Refused(f"handshake: {head[:200]!r}"))
        else:
            self.is_open.set_result(None)
        return rest

    def send(self, message: Message) -> None:
        self.transport.write(encode_frame(TEXT, json.dumps(message).encode()))


async def open_socket(api: Api, path: str, heard: Callable[[Message], None]) -> Socket:
    key = b64encode(os.urandom(16)).decode()
    head = (
        f"GET {path} HTTP/1.1\r\nHost: {api.host}:{api.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {api.token}\r\n\r\n"
    )
    _, socket = await asyncio.get_running_loop().create_connection(lambda: Socket(head.encode(), heard), api.host, api.port)
    await socket.is_open
    return socket
