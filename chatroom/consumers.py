"""The browsers' sockets: who is there, since when, and nothing else. What they get is the feed's."""

import json
from dataclasses import dataclass
from http.cookies import SimpleCookie
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs

from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import User
from django.db import DatabaseError, InterfaceError
from django.http import HttpRequest
from django.http.request import split_domain_port, validate_host
from django.utils.html import format_html

from .db import in_read
from .feed import LEFT_THE_ROOM, SIGNED_OUT, Audience, RoomFeed, Watcher, feeds
from .models import Membership, Room
from .nav import NavFeed, NavWatcher, navs
from .sockets import QuickConsumer

TRY_AGAIN = 1013
LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Visitor:
    user: User
    session_key: str


def header(scope: dict[str, Any], name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def is_own_page(scope: dict[str, Any]) -> bool:
    """Whether the page that opens the socket is ours: a browser sends our cookies along whichever site's page it is."""
    origin, host = header(scope, b"origin"), header(scope, b"host").lower()
    if origin in settings.CSRF_TRUSTED_ORIGINS:
        return True
    is_known_host = validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
    return is_known_host and origin.lower() in {f"http://{host}", f"https://{host}"}


def read_cookie(scope: dict[str, Any]) -> str:
    morsel = SimpleCookie(header(scope, b"cookie")).get(settings.SESSION_COOKIE_NAME)
    return morsel.value if morsel else ""


def find_visitor(session_key: str) -> Visitor | None:
    """Whom the session belongs to, by Django's own rules: its hash must fit the password, its person be active."""
    if not session_key:
        return None
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    user = get_user(request)
    return Visitor(user, session_key) if isinstance(user, User) and user.is_active else None


def find_membership(session_key: str, reference: str) -> tuple[Visitor | None, Membership | None]:
    visitor = find_visitor(session_key)
    if visitor is None:
        return None, None
    try:
        room = Room.objects.visible_to(visitor.user).find(reference)
    except (Room.DoesNotExist, ValueError):  # a NUL is no slug
        return visitor, None
    return visitor, Membership.objects.select_related("room").get(room=room, user=visitor.user)


def server_url(scope: dict[str, Any]) -> str:
    """The address under which this browser reaches us: what its page tells it to paste elsewhere."""
    is_secure = scope.get("scheme") == "wss" or (settings.SECURE_PROXY_SSL_HEADER and header(scope, b"x-forwarded-proto") == "https")
    return settings.PUBLIC_URL.rstrip("/") or f"{'https' if is_secure else 'http'}://{header(scope, b'host')}"


class PageConsumer(QuickConsumer):
    """Answers a page's pings, by which it knows that the connection lives and how long it takes."""

    async def connect(self) -> None:
        if not is_own_page(self.scope):
            await self.close()
            return
        await self.accept()
        try:
            await self.admit(read_cookie(self.scope))
        except (DatabaseError, InterfaceError):
            await self.close(TRY_AGAIN)

    async def admit(self, session_key: str) -> None:
        raise NotImplementedError

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        message = read_message(text_data)
        if isinstance(message.get("ping"), int | float):
            mark = format_html('<span id="pong" data-ping="{}" hx-swap-oob="outerHTML" hidden></span>', message["ping"])
            await self.send(mark)
        elif isinstance(message.get("last"), int):
            self.catch_up(message["last"])

    def catch_up(self, last: int) -> None:
        """The page told which event it saw last."""

    async def send_text(self, html: str) -> None:
        await self.send(text_data=html)

    async def end(self, code: int) -> None:
        await self.close(code)


def lists_asked_for(scope: dict[str, Any]) -> frozenset[str]:
    """`/ws/me/?lists=machines,enrolments`: what this page shows besides the lists of every page."""
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("lists", [""])[0]
    return frozenset(asked.split(","))


def read_message(text: str | None) -> dict[str, Any]:
    """What a browser sent, or nothing if it is not what ours sends."""
    try:
        message = json.loads(text) if text and len(text) <= LONGEST_MESSAGE else {}
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


class RoomConsumer(PageConsumer):
    feed: RoomFeed | None = None
    watcher: Watcher | None = None

    async def admit(self, session_key: str) -> None:
        visitor, membership = await in_read(find_membership, session_key, self.scope["url_route"]["kwargs"]["room"])
        if visitor is None or membership is None:
            await self.close(SIGNED_OUT if visitor is None else LEFT_THE_ROOM)
            return
        audience = Audience(membership.role, server_url(self.scope))
        self.watcher = Watcher(self.send_text, self.end, visitor.user.pk, visitor.session_key, audience)
        self.room_id = membership.room_id
        self.feed = feeds.watch(self.room_id, self.watcher)

    def catch_up(self, last: int) -> None:
        """Once: from then on the server knows what this page has seen."""
        if self.feed is not None and self.watcher is not None and self.watcher.cursor is None:
            self.watcher.cursor = max(0, min(last, 2**62))
            self.feed.wake()

    async def disconnect(self, code: int) -> None:
        if self.feed is not None and self.watcher is not None:
            feeds.leave(self.room_id, self.feed, self.watcher)


class MeConsumer(PageConsumer):
    feed: NavFeed | None = None
    watcher: NavWatcher | None = None

    async def admit(self, session_key: str) -> None:
        visitor = await in_read(find_visitor, session_key)
        if visitor is None:
            await self.close(SIGNED_OUT)
            return
        self.watcher = NavWatcher(self.send_text, self.end, visitor.user.pk, visitor.session_key, lists_asked_for(self.scope))
        self.feed = navs.watch(self.watcher)

    async def disconnect(self, code: int) -> None:
        if self.feed is not None and self.watcher is not None:
            navs.leave(self.feed, self.watcher)
