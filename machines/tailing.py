"""An agent's output, live: the newest part of what its newest run printed, followed from run to run."""

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from agents.models import Agent
from chatroom.consumers import TRY_AGAIN, PageConsumer, find_membership, read_message
from chatroom.db import in_read
from chatroom.feed import LEFT_THE_ROOM, SIGNED_OUT
from chatroom.hub import Topic, hub
from machines.hints import topic_of_log
from machines.models import Run

SHORTEST_GAP = 1.0
SHOWN_RUNS = 3
# The newest, and the one before: its last words come when the next has begun.
FOLLOWED_RUNS = 2


@dataclass
class Tail:
    """What is kept of a run's output."""

    run: Run
    text: str

    @property
    def title(self) -> str:
        attempt = f" · attempt {self.run.attempt}" if self.run.attempt > 1 else ""
        pid = f", pid {self.run.pid}" if self.run.pid and not self.run.is_finished else ""
        why = f": {self.run.error_message}" if self.run.error_message else ""
        return f"run {self.run.pk}{attempt} · {self.run.state}{pid} on {self.run.machine}{why}"


def read_tails(agent: Agent, *, runs: int = SHOWN_RUNS) -> list[Tail]:
    """Of its newest runs, the newest last."""
    found = Run.objects.filter(agent=agent).select_related("machine", "log").order_by("-pk")[:runs]
    return [Tail(run, run.log.text if hasattr(run, "log") else "") for run in found][::-1]


@dataclass
class Seen:
    """One look, for one page. `code` closes it."""

    code: int = 0
    room_id: int = 0
    tails: tuple[Tail, ...] = ()


def read_log(session_key: str, reference: str, role: str, *, runs: int) -> Seen:
    """Who looks is asked each time: a membership may have ended since."""
    visitor, membership = find_membership(session_key, reference)
    if visitor is None or membership is None:
        return Seen(SIGNED_OUT if visitor is None else LEFT_THE_ROOM)
    agent = Agent.objects.filter(room=membership.room, role=role).first()
    if agent is None:
        return Seen(LEFT_THE_ROOM)
    return Seen(room_id=membership.room_id, tails=tuple(read_tails(agent, runs=runs)))


class LogConsumer(PageConsumer):
    """Sends `{"run", "title", "text", "append"}`: the text of a run so far, or what was added to it."""

    sender: "asyncio.Task[None] | None" = None
    topics: frozenset[Topic] = frozenset()

    async def admit(self, session_key: str) -> None:
        route = self.scope["url_route"]["kwargs"]
        self.wake = asyncio.Event()
        self.sent: dict[int, Tail] = {}
        self.question = (session_key, route["room"], route["role"])
        seen = await in_read(read_log, *self.question, runs=SHOWN_RUNS)
        if seen.code:
            await self.close(seen.code)
            return
        await self.tell(seen)
        self.sender = asyncio.create_task(self.keep_sending())

    async def keep_sending(self) -> None:
        """At most once a second; without a hint at every re-check, for a hint may be lost."""
        while True:
            await asyncio.sleep(SHORTEST_GAP)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wake.wait(), settings.FEED_RECHECK_INTERVAL)
            self.wake.clear()
            try:
                seen = await in_read(read_log, *self.question, runs=FOLLOWED_RUNS)
            except (DatabaseError, InterfaceError):
                await self.close(TRY_AGAIN)
                return
            if seen.code:
                await self.close(seen.code)
                return
            await self.tell(seen)

    async def tell(self, seen: Seen) -> None:
        for tail in seen.tails:
            before = self.sent.get(tail.run.pk)
            if before is None or (before.text, before.title) != (tail.text, tail.title):
                await self.send(text_data=json.dumps(describe_news(tail, before)))
                self.sent[tail.run.pk] = tail
        self.listen_to(frozenset({seen.room_id, *(topic_of_log(tail.run.pk) for tail in seen.tails[-FOLLOWED_RUNS:])}))

    def listen_to(self, topics: frozenset[Topic]) -> None:
        for topic in topics - self.topics:
            hub.subscribe(topic, self.wake.set)
        for topic in self.topics - topics:
            hub.unsubscribe(topic, self.wake.set)
        self.topics = topics

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """A page only asks whether we are still there."""
        if "ping" in read_message(text_data):
            await self.send(text_data='{"pong": true}')

    async def disconnect(self, code: int) -> None:
        if self.sender is not None:
            self.sender.cancel()
        self.listen_to(frozenset())


def describe_news(tail: Tail, before: Tail | None) -> dict[str, Any]:
    """Only what was added, while the beginning is still there."""
    is_longer = before is not None and tail.text.startswith(before.text)
    text = tail.text[len(before.text) :] if before is not None and is_longer else tail.text
    return {"run": tail.run.pk, "title": tail.title, "text": text, "append": is_longer}
