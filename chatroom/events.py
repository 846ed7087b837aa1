"""The event log, and the only writer to the channel layer."""

import asyncio
import logging
import queue
import threading
from functools import cache, partial
from typing import Any

from django.db import models, transaction
from django.utils.timezone import now
from django_fsm import TransitionNotAllowed

from .errors import WrongState
from .hub import Topic, hub, send_hint
from .models import Event
from .rows import insert_in_time, new, save_changes
from .unit import open_unit

log = logging.getLogger(__name__)
SUBJECT_STATE = {"task": "status", "agent": "status", "run": "state", "command": "state", "machine": "status"}


def record_event(
    subject: models.Model,
    trigger: str,
    *,
    actor: str,
    room_id: int | None,
    from_state: str = "",
    to_state: str = "",
    reason: str = "",
    role: str = "",
    data: dict[str, Any] | None = None,
) -> Event:
    """Writes the one event of a change, in the caller's transaction; after commit whoever watches the room is woken."""
    event = new(
        Event,
        room_id=room_id,
        subject=str(subject._meta.model_name),
        subject_id=subject.pk,
        role=role,
        trigger=trigger,
        from_state=from_state,
        to_state=to_state,
        actor=actor,
        reason=reason,
        data=data or {},
    )
    if unit := open_unit():
        if not unit.events:
            unit.last.append(partial(write_events, unit.events))
        unit.events.append(event)
    else:
        write_events([event])
    return event


def write_events(events: list[Event]) -> None:
    insert_in_time(*events)
    for room_id in {event.room_id for event in events if event.room_id is not None}:
        transaction.on_commit(partial(room_changed, room_id))


def move(subject: Any, trigger: str, *, actor: str, reason: str = "", data: dict[str, Any] | None = None, **fields: Any) -> None:
    """A declared transition of a locked row: made, saved, its event written. Raises WrongState, which says what is possible instead."""
    field = SUBJECT_STATE[subject._meta.model_name]
    before = getattr(subject, field)
    try:
        getattr(subject, trigger)(**fields)
    except TransitionNotAllowed:
        raise refuse_move(subject, trigger, current=before) from None
    if hasattr(subject, f"{field}_since"):
        setattr(subject, f"{field}_since", now())
    save_changes(subject)
    after = getattr(subject, field)
    role = getattr(subject, "role", "") or getattr(subject, "assigned_role", "")
    room_id = getattr(subject, "room_id", None)
    record_event(subject, trigger, actor=actor, room_id=room_id, from_state=before, to_state=after, reason=reason, role=role, data=data)


def possible_moves(subject: Any) -> list[str]:
    field = SUBJECT_STATE[subject._meta.model_name]
    return sorted({move.name for move in getattr(subject, f"get_available_{field}_transitions")()})


def refuse_move(subject: Any, trigger: str, *, current: str) -> WrongState:
    allowed = possible_moves(subject)
    what = f"{subject._meta.model_name} {subject.pk}"
    log.info("move refused: %s is %s, trigger %s", what, current, trigger)
    return WrongState(
        f"{what} is {current}: {trigger} is not possible from there; possible: {', '.join(allowed) or 'nothing'}",
        current=current,
        allowed=allowed,
    )


def room_changed(room_id: Topic) -> None:
    """After commit. In the web process the event loop passes it on; elsewhere a thread does, so that no caller ever waits for Redis."""
    if not hub.wake_from_anywhere(room_id):
        hints().put(room_id)


@cache
def hints() -> "queue.SimpleQueue[Topic]":
    waiting: queue.SimpleQueue[Topic] = queue.SimpleQueue()
    threading.Thread(target=send_hints, args=(waiting,), name="hints", daemon=True).start()
    return waiting


def send_hints(waiting: "queue.SimpleQueue[Topic]") -> None:
    # Waits on this daemon thread itself: one of asyncio's own would keep the process from ending.
    with asyncio.Runner() as runner:
        while True:
            changed = {waiting.get()}
            while not waiting.empty():
                changed.add(waiting.get())
            runner.run(send_each(changed))


async def send_each(changed: set[Topic]) -> None:
    for topic in changed:
        await send_hint(topic)
