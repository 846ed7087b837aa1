"""Following a room: its events in order, held open by the server until there is something new."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from chatroom.client.server import Server, path

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD_SECONDS, PAUSE_SECONDS, PAGE = 25, 0.2, 500


def last_event(server: Server, room: str) -> int:
    return int(server.get(path("rooms", room, "events"), limit=1)["last"])


def later_events(server: Server, room: str, *, after: int) -> Iterator[list[dict[str, Any]]]:
    """Batches of events, for ever. The pause gathers what comes in a burst: a busy room must not make us ask without end."""
    while True:
        answer = server.get(path("rooms", room, "events"), hold=HOLD_SECONDS, after=after, wait=HOLD_SECONDS, limit=PAGE)
        after = max(after, int(answer["last"]))
        if answer["events"]:
            yield answer["events"]
        time.sleep(PAUSE_SECONDS)


def with_messages(server: Server, room: str, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events, each posted message beside its event."""
    posted = [event["data"]["message"] for event in events if "message" in (event.get("data") or {})]
    messages = {message["id"]: message for message in messages_between(server, room, first=min(posted), last=max(posted))} if posted else {}
    return [{**event, "message": messages.get((event.get("data") or {}).get("message"))} for event in events]


def messages_between(server: Server, room: str, *, first: int, last: int) -> Iterator[dict[str, Any]]:
    after = first - 1
    while after < last:
        page = server.get(path("rooms", room, "messages"), after=after, limit=PAGE)["messages"]
        yield from page
        if not page:
            return
        after = page[-1]["id"]
