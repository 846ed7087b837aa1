"""What a room looks like in JSON. Apps above this one add their part."""

from collections.abc import Callable
from typing import Any

from .errors import Invalid
from .models import Event, Message, Room, Task, TaskStatus
from .models.task import UNFINISHED
from .words import describe_event as in_words

Contributor = Callable[[Room, dict[str, Any]], None]
CONTRIBUTORS: list[Contributor] = []
# Why a chain can't go on, for apps that know more than the tasks do: (room, roles with unfinished work) → a reason, or nothing.
STOPPERS: list[Callable[[Room, list[str]], str | None]] = []
FINISHED_SHOWN = 50


def contribute(function: Contributor) -> Contributor:
    CONTRIBUTORS.append(function)
    return function


def room_status(room: Room) -> dict[str, Any]:
    tasks = Task.objects.filter(room=room).unfinished().order_by("id")
    status: dict[str, Any] = {
        "room": name_room(room),
        "agents": [],
        "tasks": [brief_task(task) for task in tasks],
        "machines": [],
    }
    for function in CONTRIBUTORS:
        function(room, status)
    return status


def name_room(room: Room) -> dict[str, Any]:
    return {"id": room.pk, "slug": room.slug, "name": room.name}


def brief_task(task: Task) -> dict[str, Any]:
    holder = task.assigned_role if task.is_held else None
    return {"id": task.pk, "status": task.status, "assigned_role": task.assigned_role, "attempt": task.attempt, "holder": holder}


def describe_task(task: Task, *, position: int | None = None) -> dict[str, Any]:
    return brief_task(task) | {
        "chain": task.chain_id,
        "title": task.title,
        "origin": task.origin,
        "priority": task.priority,
        "position": position,
        "created_at": task.created_at,
        "failure_reason": task.failure_reason,
    }


def queue_positions(room: Room) -> dict[int, int]:
    """Each queued task's place in the queue of its role, from 1."""
    places: dict[int, int] = {}
    count: dict[str, int] = {}
    for pk, role in Task.objects.filter(room=room).next_in_queue().values_list("pk", "assigned_role"):
        count[role] = places[pk] = count.get(role, 0) + 1
    return places


def list_tasks(room: Room, *, status: str = "") -> list[dict[str, Any]]:
    if status and status not in TaskStatus.values:
        raise Invalid(f"status {status[:40]!r}: expected one of {', '.join(TaskStatus.values)}", allowed=TaskStatus.values)
    tasks = Task.objects.filter(room=room)
    positions = queue_positions(room)
    if status:
        chosen = list(tasks.filter(status=status).order_by("-id")[:500])[::-1]
    else:
        finished = tasks.exclude(status__in=UNFINISHED).order_by("-id")[:FINISHED_SHOWN]
        chosen = [*tasks.filter(status__in=UNFINISHED).order_by("id"), *finished]
    return [describe_task(task, position=positions.get(task.pk)) for task in chosen]


def describe_chain(task: Task) -> dict[str, Any]:
    """A task with the whole chain it belongs to, and whether that goes on: open, done or failed, and why."""
    chain = list(Task.objects.filter(chain_id=task.chain_id).order_by("id"))
    state, reason = "done", None
    failed = next((item for item in reversed(chain) if item.status in (TaskStatus.FAILED, TaskStatus.CLOSED)), None)
    going = [item.assigned_role for item in chain if item.status in UNFINISHED and item.status != TaskStatus.PENDING_USER_REVIEW]
    if failed is not None:
        state, reason = "failed", f"task {failed.pk} of {failed.assigned_role} {how_it_ended(failed)}"
    elif going:
        reason = next((found for stopper in STOPPERS if (found := stopper(task.room, going))), None)
        state = "failed" if reason else "open"
    return describe_task(task) | {"chain_tasks": [describe_task(item) for item in chain], "chain_state": state, "chain_reason": reason}


def how_it_ended(task: Task) -> str:
    """`failed: the tests are red`, `closed by alice: not needed any more`"""
    ended = Event.objects.filter(subject="task", subject_id=task.pk, to_state=task.status).order_by("-pk").first()
    return in_words(ended) if ended else task.status


def describe_event(event: Event) -> dict[str, Any]:
    return {
        "id": event.pk,
        "time": event.created_at,
        "subject": event.subject,
        "subject_id": event.subject_id,
        "role": event.role,
        "trigger": event.trigger,
        "name": event.name,
        "from": event.from_state,
        "to": event.to_state,
        "actor": event.actor,
        "reason": event.reason,
        "data": event.data,
    }


def describe_message(message: Message) -> dict[str, Any]:
    return {
        "id": message.pk,
        "kind": message.kind,
        "from": message.sender,
        "to": message.to,
        "text": message.text,
        "task": message.task_id,
        "created_at": message.created_at,
    }


def newest_after(rows: Any, *, after: int | None, limit: int) -> list[Any]:
    """The rows after an id, oldest first; without an id the newest ones."""
    if after is None:
        return list(rows.order_by("-id")[:limit])[::-1]
    return list(rows.filter(pk__gt=after).order_by("id")[:limit])
