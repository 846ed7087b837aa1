"""The lists of one's own, live: the rooms on every page, and what other apps add. One look per process at all that the people who are
here may see, however many pages are open."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Protocol

from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.template.loader import render_to_string
from django.utils.timezone import now

from .contributions import contributed
from .db import in_read
from .feed import SHORTEST_GAP, SIGNED_OUT, Fragment, renderer
from .hub import Callback, Topic, hub
from .models import Membership, Room
from .panel import Goings, read_goings

log = logging.getLogger(__name__)
OOB = ' hx-swap-oob="morph"'
Drawn = dict[Hashable, str]


@dataclass
class Listing:
    """Each row once, whose it is and in which order, and the topics that announce a change."""

    rows: dict[Hashable, Fragment] = field(default_factory=dict)
    of_user: dict[int, list[Hashable]] = field(default_factory=dict)
    topics: set[Topic] = field(default_factory=set)


class ListPart(Protocol):
    name: str
    # The whole list around its rows, needed when they are others than before; without it each row has its own place.
    wrapper: str
    # On every page, or only where the page asks for it: /ws/me/?lists=NAME
    is_everywhere: bool

    def read(self, user_ids: set[int]) -> Listing:
        """Called on a database thread; rendering happens elsewhere, without queries."""


@dataclass
class NavRow:
    room: Room
    goings: Goings


def read_nav(user: User) -> list[NavRow]:
    return make_rows(list(Room.objects.visible_to(user)))


def make_rows(rooms: list[Room]) -> list[NavRow]:
    goings = read_goings([room.pk for room in rooms])
    return [NavRow(room, goings[room.pk]) for room in rooms]


class RoomsList:
    name, is_everywhere = "rooms", True
    wrapper = '<ul id="nav-rooms" class="nav-rooms" hx-swap-oob="morph">{}</ul>'

    def read(self, user_ids: set[int]) -> Listing:
        found = Listing(of_user={user_id: [] for user_id in user_ids})
        rooms: dict[int, Room] = {}
        for user_id, room in memberships(user_ids):
            found.of_user[user_id].append(room.pk)
            rooms[room.pk] = room
        for row in make_rows(list(rooms.values())):
            found.rows[row.room.pk] = Fragment(f"nav-room-{row.room.pk}", "chatroom/_nav_room.html", {"row": row})
        found.topics = set(rooms)
        return found


def memberships(user_ids: Iterable[int]) -> Iterable[tuple[int, Room]]:
    links = Membership.objects.filter(user__in=user_ids, user__is_active=True).select_related("room").order_by("room__name")
    return [(link.user_id, link.room) for link in links]


@cache
def list_parts() -> list[ListPart]:
    return [part() for part in contributed("list")]


@dataclass(eq=False)
class NavWatcher:
    """One page's lists. `shown` is what each shows now: its rows."""

    send: Callable[[str], Awaitable[None]]
    close: Callable[[int], Awaitable[None]]
    user_id: int
    session_key: str
    asked_for: frozenset[str] = frozenset()
    shown: dict[str, Drawn] = field(default_factory=dict)

    def has(self, part: ListPart) -> bool:
        return part.is_everywhere or part.name in self.asked_for

    def catch_up(self, part: ListPart, rows: Drawn) -> str:
        """What this page has to learn of a list: the rows that changed; the whole of it when they are others than before."""
        shown, self.shown[part.name] = self.shown.get(part.name), rows
        if part.wrapper and (shown is None or list(shown) != list(rows)):
            return part.wrapper.format("".join(rows.values()).replace(OOB, ""))
        return "".join(html for key, html in rows.items() if shown is None or shown.get(key) != html)


@dataclass
class NavPass:
    listings: dict[str, Listing]
    sessions: set[str]


def read_navs(wanted: dict[str, set[int]], session_keys: set[str]) -> NavPass:
    listings = {part.name: part.read(wanted[part.name]) for part in list_parts() if wanted.get(part.name)}
    return NavPass(listings, set(Session.objects.filter(pk__in=session_keys, expire_date__gt=now()).values_list("pk", flat=True)))


def draw(listings: dict[str, Listing]) -> dict[str, Drawn]:
    return {
        name: {key: render_to_string(row.template, {**row.context, "oob": "morph"}) for key, row in listing.rows.items()}
        for name, listing in listings.items()
    }


class NavFeed:
    def __init__(self) -> None:
        self.watchers: set[NavWatcher] = set()
        self.subscribed: dict[Topic, Callback] = {}
        self.changed = asyncio.Event()
        self.is_failing = False
        self.running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            while self.watchers:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), settings.FEED_RECHECK_INTERVAL)
                self.changed.clear()
                await self.attempt()
                await asyncio.sleep(SHORTEST_GAP * 2)
        finally:
            self.listen_to(set())

    async def attempt(self) -> None:
        try:
            await self.look()
        except Exception as error:
            if not self.is_failing:
                log.warning("the lists can't be read (%s): trying again every %s s", error, settings.FEED_RECHECK_INTERVAL)
            self.is_failing = True
        else:
            self.is_failing = False

    async def look(self) -> None:
        watchers = list(self.watchers)
        wanted = {part.name: {watcher.user_id for watcher in watchers if watcher.has(part)} for part in list_parts()}
        seen = await in_read(read_navs, wanted, {watcher.session_key for watcher in watchers})
        self.listen_to({topic for listing in seen.listings.values() for topic in listing.topics})
        drawn = await asyncio.get_running_loop().run_in_executor(renderer(), draw, seen.listings)
        for watcher in watchers:
            with suppress(Exception):  # a socket that is gone says so to its own consumer
                await self.tell(watcher, seen, drawn)

    async def tell(self, watcher: NavWatcher, seen: NavPass, drawn: dict[str, Drawn]) -> None:
        if watcher.session_key not in seen.sessions:
            self.watchers.discard(watcher)
            await watcher.close(SIGNED_OUT)
            return
        news = ""
        for part in list_parts():
            if watcher.has(part):
                own = seen.listings[part.name].of_user.get(watcher.user_id, [])
                news += watcher.catch_up(part, {key: drawn[part.name][key] for key in own})
        if news:
            await watcher.send(news)

    def listen_to(self, topics: set[Topic]) -> None:
        for topic in topics - set(self.subscribed):
            self.subscribed[topic] = partial(self.wake)
            hub.subscribe(topic, self.subscribed[topic])
        for topic in set(self.subscribed) - topics:
            hub.unsubscribe(topic, self.subscribed.pop(topic))

    def wake(self) -> None:
        self.changed.set()


class Navs:
    """The one feed of this process, while somebody is here."""

    def __init__(self) -> None:
        self.feed: NavFeed | None = None

    def watch(self, watcher: NavWatcher) -> NavFeed:
        feed, loop = self.feed, asyncio.get_running_loop()
        if feed is None or feed.running is None or feed.running.done() or not feed.watchers or feed.running.get_loop() is not loop:
            feed = self.feed = NavFeed()
            feed.watchers.add(watcher)
            feed.running = loop.create_task(feed.run())
        feed.watchers.add(watcher)
        feed.wake()
        return feed

    def leave(self, feed: NavFeed, watcher: NavWatcher) -> None:
        feed.watchers.discard(watcher)
        if not feed.watchers and feed.running is not None:
            feed.running.cancel()


navs = Navs()
