"""What makes open pages live: per process and watched room one feed, which reads the events after its watchers' cursors,
renders each changed fragment once per audience, and sends it to every browser.

Hints wake it; without any it looks by itself every FEED_RECHECK_INTERVAL. A browser brings the id of the last event its page shows,
so a lost connection costs nothing but time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Protocol

from django.conf import settings
from django.contrib.sessions.models import Session
from django.template.loader import render_to_string
from django.utils.timezone import now

from .contributions import contributed
from .db import in_read
from .hub import hub
from .models import Event, MemberRole, Membership, Room

log = logging.getLogger(__name__)
# A page that missed more than this gets its panes as they are, instead of event by event.
MOST_EVENTS = 500
# Under a storm of changes the pages are redrawn this often; a single change is sent at once.
SHORTEST_GAP = 0.05
LEFT_THE_ROOM, ROLE_CHANGED, SIGNED_OUT = 4404, 4405, 4401


@dataclass(frozen=True)
class Audience:
    """Those who see the same markup: what they may do, and the address under which they reach the server."""

    role: str
    server_url: str

    @property
    def context(self) -> dict[str, Any]:
        is_owner = self.role == MemberRole.OWNER
        return {"can_act": self.role != MemberRole.VIEWER, "is_owner": is_owner, "server_url": self.server_url, "role": self.role}


@dataclass(frozen=True)
class Fragment:
    """A piece of the page, read from the database but not yet rendered. Its template's root has the id `key`, and takes `oob`."""

    key: str
    template: str
    context: Mapping[str, Any]
    append_to: str = ""


@dataclass(frozen=True)
class Look:
    """What one page of a room has to learn: the events after its cursor, or everything if it missed too much."""

    room: Room
    events: list[Event]
    is_new: bool = False
    everything: bool = False

    def ids(self, subject: str) -> set[int]:
        return {event.subject_id for event in self.events if event.subject == subject}

    def roles(self, *subjects: str) -> set[str]:
        return {event.role for event in self.events if event.subject in subjects and event.role}


class Part(Protocol):
    """One kind of thing on a room's page. Both are called on a database thread; rendering happens elsewhere, without queries."""

    def read(self, look: Look) -> Iterable[Fragment]: ...

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        """What changed without an event since the last call with the same memory: leases, mostly."""


@cache
def parts() -> list[Part]:
    return [part() for part in contributed("part")]


@cache
def renderer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="render")


def render(fragments: Iterable[Fragment], *, audience: Audience, drawn: dict[tuple[int, Audience], str]) -> str:
    """Each once per audience: `drawn` remembers what another page of the same pass needed already."""
    html = []
    for fragment in fragments:
        known = (id(fragment), audience)
        if known not in drawn:
            drawn[known] = render_fragment(fragment, audience=audience)
        html.append(drawn[known])
    return "".join(html)


def render_fragment(fragment: Fragment, *, audience: Audience) -> str:
    oob = "" if fragment.append_to else "morph"
    html = render_to_string(fragment.template, {**audience.context, **fragment.context, "oob": oob})
    return f'<div hx-swap-oob="beforeend:#{fragment.append_to}">{html}</div>' if fragment.append_to else html


@dataclass(eq=False)
class Watcher:
    """One browser's page. `cursor` is the last event it has seen; it is unknown until the page says so."""

    send: Callable[[str], Awaitable[None]]
    close: Callable[[int], Awaitable[None]]
    user_id: int
    session_key: str
    audience: Audience
    cursor: int | None = None
    is_new: bool = True

    @property
    def standing(self) -> tuple[int, bool]:
        return (self.cursor or 0, self.is_new)


@dataclass
class Pass:
    """One reading of a room, for all its watchers."""

    fragments: dict[tuple[int, bool], list[Fragment]] = field(default_factory=dict)
    last: int = 0
    rechecked: list[Fragment] = field(default_factory=list)
    roles: dict[int, str] | None = None
    sessions: set[str] = field(default_factory=set)


def read_room(room_id: int, *, standings: set[tuple[int, bool]], memory: dict[str, Any], people: dict[int, set[str]] | None) -> Pass:
    """Everything one pass needs, in one visit to the database. Events first: what is read after them is never older than they say."""
    room = Room.objects.get(pk=room_id)
    seen = Pass()
    if standings:
        first = min(cursor for cursor, _ in standings)
        events = list(Event.objects.filter(room=room, pk__gt=first).order_by("-pk")[: MOST_EVENTS + 1])[::-1]
        seen.last = events[-1].pk if events else first
        for cursor, is_new in standings:
            missed = [event for event in events if event.pk > cursor]
            look = Look(room, missed, is_new=is_new, everything=len(missed) > MOST_EVENTS)
            if missed or is_new:
                seen.fragments[cursor, is_new] = [fragment for part in parts() for fragment in part.read(look)]
    if people is not None:
        seen.rechecked = [fragment for part in parts() for fragment in part.recheck(room, memory)]
        members = Membership.objects.filter(room=room, user__in=people, user__is_active=True)
        seen.roles = dict(members.values_list("user_id", "role"))
        keys = set().union(*people.values())
        seen.sessions = set(Session.objects.filter(pk__in=keys, expire_date__gt=now()).values_list("pk", flat=True))
    return seen


class RoomFeed:
    def __init__(self, room_id: int) -> None:
        self.room_id = room_id
        self.watchers: set[Watcher] = set()
        self.changed = asyncio.Event()
        self.memory: dict[str, Any] = {}
        self.rechecked_at = 0.0
        self.is_failing = False
        self.running: asyncio.Task[None] | None = None

    def wake(self) -> None:
        self.changed.set()

    @property
    def is_running(self) -> bool:
        task = self.running
        return bool(self.watchers) and task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()

    async def run(self) -> None:
        """As long as somebody watches."""
        loop = asyncio.get_running_loop()
        hub.subscribe(self.room_id, self.wake)
        try:
            while self.watchers:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), settings.FEED_RECHECK_INTERVAL)
                self.changed.clear()
                started = loop.time()
                await self.attempt(is_recheck=started - self.rechecked_at >= settings.FEED_RECHECK_INTERVAL)
                await asyncio.sleep(max(0.0, SHORTEST_GAP - (loop.time() - started)))
        finally:
            hub.unsubscribe(self.room_id, self.wake)

    async def attempt(self, *, is_recheck: bool) -> None:
        try:
            await self.look(is_recheck=is_recheck)
        except Room.DoesNotExist:
            await self.dismiss(list(self.watchers), LEFT_THE_ROOM)
        except Exception as error:
            # Pages say themselves that they are behind; the next pass begins where this one should have.
            if not self.is_failing:
                log.warning(
                    "the feed of room %s can't read (%s): trying again every %s s", self.room_id, error, settings.FEED_RECHECK_INTERVAL
                )
            self.is_failing = True
        else:
            self.is_failing = False

    async def look(self, *, is_recheck: bool) -> None:
        """One pass: read once, render once per audience, send to all."""
        # Whoever comes while this pass reads is looked at in the next one.
        present = list(self.watchers)
        watchers = [watcher for watcher in present if watcher.cursor is not None]
        people: dict[int, set[str]] | None = None
        if is_recheck:
            people = {}
            for watcher in present:
                people.setdefault(watcher.user_id, set()).add(watcher.session_key)
        seen = await in_read(
            read_room, self.room_id, standings={watcher.standing for watcher in watchers}, memory=self.memory, people=people
        )
        if is_recheck:
            self.rechecked_at = asyncio.get_running_loop().time()
            await self.check_people(present, seen)
        await self.tell([watcher for watcher in watchers if watcher in self.watchers], seen)

    async def check_people(self, present: list[Watcher], seen: Pass) -> None:
        roles = seen.roles or {}
        for watcher in present:
            role = roles.get(watcher.user_id)
            if watcher.session_key not in seen.sessions:
                await self.dismiss([watcher], SIGNED_OUT)
            elif role != watcher.audience.role:
                await self.dismiss([watcher], ROLE_CHANGED if role else LEFT_THE_ROOM)

    async def dismiss(self, watchers: list[Watcher], code: int) -> None:
        for watcher in watchers:
            self.watchers.discard(watcher)
            with suppress(Exception):  # it may be gone already
                await watcher.close(code)

    async def tell(self, watchers: list[Watcher], seen: Pass) -> None:
        drawn: dict[tuple[int, Audience], str] = {}
        for watcher in watchers:
            fragments = merge(seen.fragments.get(watcher.standing, []), seen.rechecked)
            if fragments or watcher.is_new or seen.last > (watcher.cursor or 0):
                drawing = partial(render, fragments, audience=watcher.audience, drawn=drawn)
                html = await asyncio.get_running_loop().run_in_executor(renderer(), drawing)
                watcher.cursor, watcher.is_new = max(seen.last, watcher.cursor or 0), False
                with suppress(Exception):  # a socket that is gone says so to its own consumer
                    await watcher.send(html + cursor_mark(watcher.cursor))


def merge(fragments: list[Fragment], rechecked: list[Fragment]) -> list[Fragment]:
    known = {fragment.key for fragment in fragments}
    return [*fragments, *(fragment for fragment in rechecked if fragment.key not in known)]


def cursor_mark(cursor: int) -> str:
    return f'<span id="cursor" data-last="{cursor}" data-now="{now().isoformat()}" hx-swap-oob="outerHTML" hidden></span>'


class Feeds:
    """The feeds of this process, by room: one runs while a page of its room is open here."""

    def __init__(self) -> None:
        self.by_room: dict[int, RoomFeed] = {}

    def watch(self, room_id: int, watcher: Watcher) -> RoomFeed:
        feed = self.by_room.get(room_id)
        if feed is None or not feed.is_running:
            feed = self.by_room[room_id] = RoomFeed(room_id)
            feed.watchers.add(watcher)
            feed.running = asyncio.get_running_loop().create_task(feed.run())
        feed.watchers.add(watcher)
        return feed

    def leave(self, room_id: int, feed: RoomFeed, watcher: Watcher) -> None:
        feed.watchers.discard(watcher)
        if feed.watchers:
            return
        if self.by_room.get(room_id) is feed:
            del self.by_room[room_id]
        if feed.running is not None:
            feed.running.cancel()


feeds = Feeds()
