"""Pages as a signed-in person gets them, and their sockets."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.conf import LazySettings, settings
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Max
from django.test import Client

from agents.models import Agent
from chatroom.db import in_db
from chatroom.events import move
from chatroom.hub import Hub
from chatroom.models import Event, Room
from chatroom.routing import websocket_application
from chatroom.services.messages import send_message
from tests.conftest import close_connections


@pytest.fixture(scope="session", autouse=True)
def static_root() -> None:
    """WhiteNoise warns when there is none."""
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def sign_in() -> Callable[[User], Client]:
    def signed_in(user: User) -> Client:
        client = Client()
        client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
        return client

    return signed_in


@pytest.fixture
def page(sign_in: Callable[[User], Client], alice: User) -> Client:
    """The owner's browser."""
    return sign_in(alice)


@pytest.fixture
def live(transactional_db: None) -> Iterator[None]:
    """For tests with sockets: their reads happen on other threads, so rows must really be committed."""
    yield
    close_connections()


class Browser:
    """One open page's socket: what was pushed, and what the page knows then."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.frames: list[str] = []

    async def receive(self, *, within: float = 5) -> str:
        html: str = await self.socket.receive_from(timeout=within)
        self.frames.append(html)
        return html

    async def receive_with(self, text: str, *, within: float = 5) -> str:
        """The first push that contains this."""
        while text not in (html := await self.receive(within=within)):
            pass
        return html

    async def say(self, **message: Any) -> None:
        await self.socket.send_json_to(message)

    @property
    def everything(self) -> str:
        return "".join(self.frames)


@asynccontextmanager
async def open_socket(
    path: str, cookies: str = "", *, last: int | None = 0, origin: bytes = b"http://testserver"
) -> AsyncIterator[Browser]:
    headers = [(b"host", b"testserver"), (b"origin", origin), (b"cookie", cookies.encode())]
    socket = WebsocketCommunicator(websocket_application, path, headers=headers)
    is_connected, _ = await socket.connect(timeout=5)
    assert is_connected, f"{path} was refused"
    browser = Browser(socket)
    if last is not None:
        await browser.say(last=last)
    try:
        yield browser
    finally:
        await socket.disconnect()


@pytest.fixture
def cookies(sign_in: Callable[[User], Client], alice: User, bob: User, vera: User, charlie: User) -> Callable[[User], str]:
    """What a signed-in browser of one of the cast sends along."""
    name = settings.SESSION_COOKIE_NAME
    jar = {user.pk: f"{name}={sign_in(user).cookies[name].value}" for user in (alice, bob, vera, charlie)}
    return lambda user: jar[user.pk]


async def closing_code(socket: Any) -> int:
    """Waits for the server to close; what it says before is of no interest."""
    while (message := await socket.receive_output(timeout=5))["type"] != "websocket.close":
        pass
    return int(message["code"])


def path_of(room: Room) -> str:
    return f"/ws/rooms/{room.slug}/"


def last_event(room: Room) -> int:
    return Event.objects.filter(room=room).aggregate(last=Max("pk"))["last"] or 0


def cursor_of(html: str) -> int:
    found = re.findall(r'<span id="cursor" data-last="(\d+)"', html)
    assert len(found) == 1, f"expected one cursor at the end, found {len(found)}: {html[-200:]}"
    return int(found[0])


async def say(room: Room, author: User, text: str) -> int:
    return (await in_db(send_message, room.pk, text=text, author=author)).message.pk


def make_agent_dead(room: Room) -> None:
    with transaction.atomic():
        move(Agent.objects.get(room=room, role="builder"), "process_exited", actor="chatroom", error_message="exit 1")


@pytest.fixture
def slow_recheck(settings: LazySettings) -> None:
    """Only hints wake the feed: what shows was pushed."""
    settings.FEED_RECHECK_INTERVAL = 60


@pytest.fixture
def quick_recheck(settings: LazySettings) -> None:
    settings.FEED_RECHECK_INTERVAL = 0.2


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hint is lost."""
    monkeypatch.setattr(Hub, "wake", lambda self, room_id: None)
