import re
from collections.abc import Callable
from typing import Any

from django.db.models import Exists, QuerySet

from chatroom import signals
from chatroom.errors import Invalid, NotFound
from chatroom.events import move, record_event
from chatroom.models import Message, Origin, Room, Task, TaskStatus
from chatroom.models.task import ACTIVE
from chatroom.prepared import Prepared
from chatroom.rows import insert

from .rooms import room_locked
from .texts import clean_reason, clean_text

TITLE_LENGTH = 120


def create_task(
    room: Room, *, message: Message, role: str, actor: str, origin: str = Origin.MESSAGE, chain: Message | None = None, priority: int = 0
) -> Task:
    """A new task of a locked room: pending if its role has nothing else to do, queued otherwise; a new backlog item waits to be moved."""
    is_new_backlog_item = origin == Origin.BACKLOG and chain is None
    status = TaskStatus.BACKLOG if is_new_backlog_item else TaskStatus.PENDING if is_role_free(room.pk, role) else TaskStatus.QUEUED
    task = insert(
        Task(
            room=room,
            message=message,
            chain=chain or message,
            assigned_role=role,
            status=status,
            origin=origin,
            title=title_of(message.text),
            priority=priority,
        )
    )
    record_event(task, "create", actor=actor, room_id=room.pk, to_state=status, role=role)
    if status == TaskStatus.PENDING:
        signals.task_pending.send(Task, task=task)
    return task


def title_of(text: str) -> str:
    """Its first line that says something, without the marks of markdown. Only its beginning is searched: a hostile one may be long."""
    line = next((line for line in text.splitlines() if line.strip(MARKS)), text)
    return without_marks(line.lstrip(BLOCK_MARKS)[: 4 * TITLE_LENGTH]).strip(MARKS)[:TITLE_LENGTH] or "…"


def without_marks(text: str) -> str:
    """Marks come in pairs: a lone one is text, and so is everything in a code span."""
    return INLINE_MARKS.sub(lambda found: found["code"] or without_marks(found[found.lastindex or 0]), text)


MARKS, BLOCK_MARKS = " #*`>-", " #>-"
INLINE_MARKS = re.compile(r"`(?P<code>[^`]+)`|\*\*(?=\S)(.+?)(?<=\S)\*\*|~~(.+?)~~|!?\[([^\]]+)\]\([^)\s]*\)")


def is_role_free(room_id: int, role: str) -> bool:
    """Nothing active and nothing older in the queue."""
    return not UNDONE.exists(room=room_id, role=role)


UNDONE = Prepared[Task](
    lambda room, role: Task.objects.filter(room=room, assigned_role=role, status__in=[TaskStatus.QUEUED, *ACTIVE]).values("pk")[:1]
)


def next_for_idle_role(room: Any, role: Any) -> QuerySet[Task]:
    """Of the queue, unless the role has something to do."""
    mine = Task.objects.filter(room=room, assigned_role=role)
    return mine.next_in_queue().filter(~Exists(mine.active()))[:1]


NEXT_FOR_IDLE_ROLE = Prepared[Task](next_for_idle_role)


def promote_next(room_id: int, *, role: str) -> Task | None:
    """The oldest of the most urgent queued tasks becomes pending, once the role has nothing active. The caller holds the room's lock."""
    task = NEXT_FOR_IDLE_ROLE.first(room=room_id, role=role)
    if task is not None:
        move(task, "promote", actor="chatroom", reason=f"{role} is free")
        signals.task_pending.send(Task, task=task)
    return task


def lock_task(room: Room, task_id: int) -> Task:
    try:
        return Task.objects.select_for_update(of=("self",)).get(pk=task_id, room=room)
    except Task.DoesNotExist:
        raise NotFound(f"there is no task {task_id} in {room}", code="no_such_task") from None


def enqueue(room_id: int, *, task_id: int, trigger: str, actor: str, reason: str) -> Task:
    """A move whose target is pending or queued, whichever the role has room for."""
    reason = clean_reason(reason)
    with room_locked(room_id) as room:
        task = lock_task(room, task_id)
        move(task, trigger, actor=actor, reason=reason, role_is_free=is_role_free(room_id, task.assigned_role))
        if task.status == TaskStatus.PENDING:
            signals.task_pending.send(Task, task=task)
        else:
            promote_next(room_id, role=task.assigned_role)
        return Task.objects.get(pk=task.pk)


def take_from_holder(room_id: int, *, task_id: int, trigger: str, actor: str, reason: str, outcome: str) -> Task:
    """A person's move of a task that somebody may hold: the holder's claim ends with it."""
    reason = clean_reason(reason)
    with room_locked(room_id) as room:
        task = lock_task(room, task_id)
        was_held = task.is_held
        move(task, trigger, actor=actor, reason=reason)
        if was_held:
            signals.task_left_holder.send(Task, task=task, outcome=outcome, actor=actor, reason=reason or f"{trigger} by {actor}")
        if task.status == TaskStatus.PENDING:
            signals.task_pending.send(Task, task=task)
        promote_next(room_id, role=task.assigned_role)
        return Task.objects.get(pk=task.pk)


def move_to_queue(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return enqueue(room_id, task_id=task_id, trigger="move_to_queue", actor=actor, reason=reason)


def retry(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return enqueue(room_id, task_id=task_id, trigger="retry", actor=actor, reason=reason)


def send_back(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    """Back to the role that did it, with the reason as a message the agent gets to read."""
    from .messages import post  # messages make tasks

    with room_locked(room_id) as room:
        task = lock_task(room, task_id)
        reason = clean_text(require_reason(reason, "sending a task back"))
        move(task, "send_back", actor=actor, reason=reason, role_is_free=is_role_free(room_id, task.assigned_role))
        post(room, text=reason, sender=actor, to=task.assigned_role, task=task)
        if task.status == TaskStatus.PENDING:
            signals.task_pending.send(Task, task=task)
        else:
            promote_next(room_id, role=task.assigned_role)
        return Task.objects.get(pk=task.pk)


def cancel_task(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    """Closes it. Closing a backlog item needs a reason: it is the only trace of why the work was not done."""
    if Task.objects.filter(pk=task_id, room_id=room_id, origin=Origin.BACKLOG).exists():
        require_reason(reason, "closing a backlog item")
    return take_from_holder(room_id, task_id=task_id, trigger="cancel_task", actor=actor, reason=reason, outcome="cancelled")


def reset(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return take_from_holder(room_id, task_id=task_id, trigger="reset", actor=actor, reason=reason, outcome="reset")


def force_complete(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return take_from_holder(room_id, task_id=task_id, trigger="force_complete", actor=actor, reason=reason, outcome="forced")


def approve(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return move_finished(room_id, task_id=task_id, trigger="approve", actor=actor, reason=reason)


def reopen(room_id: int, *, task_id: int, actor: str, reason: str = "") -> Task:
    return move_finished(room_id, task_id=task_id, trigger="reopen", actor=actor, reason=reason)


def move_finished(room_id: int, *, task_id: int, trigger: str, actor: str, reason: str) -> Task:
    reason = clean_reason(reason)
    with room_locked(room_id) as room:
        task = lock_task(room, task_id)
        move(task, trigger, actor=actor, reason=reason)
        return task


def require_reason(reason: str, act: str) -> str:
    if not reason.strip():
        raise Invalid(f"{act} needs a reason: found none, expected a sentence")
    return reason.strip()


TASK_ACTS: dict[str, Callable[..., Task]] = {
    "move_to_queue": move_to_queue,
    "cancel": cancel_task,
    "reset": reset,
    "retry": retry,
    "force_complete": force_complete,
    "approve": approve,
    "send_back": send_back,
    "reopen": reopen,
}
