"""The ASGI application of the web process, spoken to as its clients do."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from asgiref.testing import ApplicationCommunicator
from channels.layers import InMemoryChannelLayer
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from agents import waiters
from chatroom import ending
from chatroom.models import Room
from tests.conftest import close_connections
from tests.factories import token_of

PATIENCE = 5.0


def web_application() -> Any:
    # Loaded late: WhiteNoise warns when there is no directory to serve.
    from chatroom.asgi import application

    return application


@pytest.fixture(scope="session", autouse=True)
def static_root() -> None:
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code."""
        return str(self.json()["error"]["code"])


async def ask(
    method: str, path: str, body: Any = None, *, token: str = "", raw: bytes | None = None, within: float = PATIENCE, **named: str
) -> Answer:
    """One HTTP request. `path` as it stands in the request line; header names with underscores."""
    parts = urlsplit(path)
    content = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
    headers = [(b"host", b"testserver"), (b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"authorization", f"Bearer {token}".encode())] if token else []
    headers += [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in named.items()]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_path(parts.path),
        "query_string": parts.query.encode(),
        "headers": headers,
        "server": ("testserver", 80),
        "client": ("127.0.0.1", 1),
    }
    communicator = ApplicationCommunicator(web_application(), scope)
    await communicator.send_input({"type": "http.request", "body": content})
    start = await communicator.receive_output(within)
    whole, more = b"", True
    while more:
        part = await communicator.receive_output(within)
        whole, more = whole + part.get("body", b""), part.get("more_body", False)
    await communicator.wait(within)
    return Answer(start["status"], {name.decode().lower(): value.decode() for name, value in start["headers"]}, whole)


def unquote_path(path: str) -> str:
    """As the server does: a path that is no UTF-8 keeps a replacement, never a surrogate."""
    return unquote_to_bytes(path).decode(errors="replace")


@dataclass
class Api:
    """The API as somebody."""

    token: str

    async def get(self, path: str, **named: Any) -> Answer:
        return await ask("GET", f"/api/v1/{path}", token=self.token, **named)

    async def post(self, path: str, body: Any = None, **named: Any) -> Answer:
        return await ask("POST", f"/api/v1/{path}", {} if body is None else body, token=self.token, **named)


@pytest.fixture
async def live(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Requests and sockets use threads of their own, so rows must really be committed. The test itself may block its loop."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    monkeypatch.setattr(ending, "ending", False)
    # One process: its own wake is what counts. What travels between processes is tested with real ones.
    layer = InMemoryChannelLayer()
    monkeypatch.setattr("chatroom.hub.get_channel_layer", lambda: layer)
    # Async code has connections of its own, one per context: the test inherits this one, and leaves none behind.
    connection.ensure_connection()
    yield
    connection.close()
    close_connections()
    for found in (waiters._by_agent, waiters._by_room, waiters._rounds, waiters._wakes):
        found.clear()  # type: ignore[attr-defined]


@pytest.fixture
def as_user() -> Callable[[User], Api]:
    return lambda user: Api(token_of(user))


@pytest.fixture
def owner(live: None, room: Room, alice: User) -> Api:
    return Api(token_of(alice))


class Socket:
    """One open socket that speaks the protocol of waiting agents."""

    def __init__(self, communicator: WebsocketCommunicator) -> None:
        self.communicator = communicator

    async def say(self, type: str, **fields: Any) -> None:  # noqa: A002  (the word of the protocol)
        await self.communicator.send_json_to({"type": type, **fields})

    async def hello(self, room: Room | str, role: str = "builder", *, incarnation: str = "one", **fields: Any) -> None:
        await self.say("hello", protocol=1, room=str(room), role=role, incarnation=incarnation, **{"joined": False, **fields})

    async def join(self, room: Room | str, role: str = "builder", **fields: Any) -> dict[str, Any]:
        await self.hello(room, role, **fields)
        return await self.hear("welcome")

    async def hear(self, kind: str, *, within: float = PATIENCE) -> dict[str, Any]:
        """The next message, which must be of this kind."""
        message: dict[str, Any] = await self.communicator.receive_json_from(timeout=within)
        assert message["type"] == kind, message
        return message

    async def hears_nothing(self) -> bool:
        return bool(await self.communicator.receive_nothing(timeout=0.2))

    async def closing_code(self) -> int:
        message = await self.communicator.receive_output(timeout=PATIENCE)
        assert message["type"] == "websocket.close", message
        return int(message.get("code") or 1000)

    async def end(self) -> None:
        """The client is gone; returns once the server has dealt with it."""
        await self.communicator.disconnect(timeout=PATIENCE)


def knock(token: str, path: str = "/ws/agent/", **headers: str) -> WebsocketCommunicator:
    sent = [(b"host", b"testserver"), *((name.encode(), value.encode("latin-1")) for name, value in headers.items())]
    sent += [(b"authorization", f"Bearer {token}".encode())] if token else []
    return WebsocketCommunicator(web_application(), path, headers=sent)


@asynccontextmanager
async def agent_socket(token: str) -> AsyncIterator[Socket]:
    communicator = knock(token)
    is_open, _ = await communicator.connect(timeout=PATIENCE)
    assert is_open, "the handshake was refused"
    try:
        yield Socket(communicator)
    finally:
        if not communicator.future.done():
            await communicator.disconnect(timeout=PATIENCE)
