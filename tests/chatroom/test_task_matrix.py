"""Every status of a task × every trigger, as the design's table has them, not as the code has them."""

from typing import Any

import pytest

from chatroom.errors import WrongState
from chatroom.events import move
from chatroom.models import Event, Origin, Room, Task, TaskStatus
from tests.factories import make_task

pytestmark = [pytest.mark.django_db, pytest.mark.scenario(21)]

ALL = "backlog queued pending acknowledged in_progress pending_user_review completed closed failed"
BUT_FINISHED = "backlog queued pending acknowledged in_progress pending_user_review failed"
HELD = "acknowledged in_progress"
Fields = dict[str, Any]
FREE: Fields = {"role_is_free": True}
BUSY: Fields = {"role_is_free": False}
ENDS: Fields = {"ends_chain": True}
GOES_ON: Fields = {"ends_chain": False}
# from · to · trigger · what the caller knows · origin
TABLE: list[tuple[str, str, str, dict[str, Any], str]] = [
    ("backlog", "pending", "move_to_queue", FREE, "backlog"),
    ("backlog", "queued", "move_to_queue", BUSY, "backlog"),
    ("queued", "pending", "promote", {}, "message"),
    ("pending", "acknowledged", "claim_task", {}, "message"),
    ("acknowledged", "in_progress", "start_task", {}, "message"),
    ("pending", "acknowledged", "resume_task", {"had_started": False}, "message"),
    ("pending", "in_progress", "resume_task", {"had_started": True}, "message"),
    (HELD, "completed", "complete_task", ENDS, "message"),
    (HELD, "completed", "complete_task", GOES_ON, "backlog"),
    (HELD, "pending_user_review", "complete_task", ENDS, "backlog"),
    ("pending_user_review", "completed", "approve", {}, "backlog"),
    ("pending_user_review", "pending", "send_back", FREE, "backlog"),
    ("pending_user_review", "queued", "send_back", BUSY, "backlog"),
    ("acknowledged", "pending", "recover_stuck_acknowledged", {}, "message"),
    ("in_progress", "pending", "recover_orphaned", {}, "message"),
    (HELD, "pending", "reset", {}, "message"),
    (HELD, "failed", "fail_task", {"failure_reason": "no"}, "message"),
    ("failed", "pending", "retry", FREE, "message"),
    ("failed", "queued", "retry", BUSY, "message"),
    (BUT_FINISHED, "closed", "cancel_task", {}, "message"),
    (BUT_FINISHED, "completed", "force_complete", {}, "message"),
    ("completed closed", "pending_user_review", "reopen", {}, "backlog"),
]
DECLARED = [(source, target, trigger, fields, origin) for sources, target, trigger, fields, origin in TABLE for source in sources.split()]
FIELDS_OF = {trigger: fields for _, _, trigger, fields, _ in TABLE}
UNDECLARED = sorted(
    {(status, trigger, origin) for status in ALL.split() for trigger in FIELDS_OF for origin in ("message", "backlog")}
    - {(source, trigger, origin) for source, _, trigger, _, _ in DECLARED for origin in ("message", "backlog")}
    | {(status, "reopen", "message") for status in ("completed", "closed")}
)


def stored(task: Task) -> dict[str, Any]:
    return dict(Task.objects.values().get(pk=task.pk))


@pytest.mark.parametrize(("source", "target", "trigger", "fields", "origin"), DECLARED)
def test_a_declared_move_goes_where_the_table_says_with_one_event(
    room: Room, source: str, target: str, trigger: str, fields: dict[str, Any], origin: str
) -> None:
    task = make_task(room, status=source, origin=origin)
    earlier = set(Event.objects.values_list("pk", flat=True))

    move(task, trigger, actor="alice", reason="because", **fields)

    assert Task.objects.get(pk=task.pk).status == target
    event = Event.objects.exclude(pk__in=earlier).get()
    found = (
        event.subject,
        event.subject_id,
        event.room_id,
        event.trigger,
        event.from_state,
        event.to_state,
        event.actor,
        event.reason,
        event.role,
    )
    assert found == ("task", task.pk, room.pk, trigger, source, target, "alice", "because", "builder")


@pytest.mark.parametrize(("status", "trigger", "origin"), UNDECLARED)
def test_an_undeclared_move_raises_and_changes_nothing(room: Room, status: str, trigger: str, origin: str) -> None:
    task = make_task(room, status=status, origin=origin)
    before, events = stored(task), Event.objects.count()

    with pytest.raises(WrongState) as refusal:
        move(task, trigger, actor="alice", **FIELDS_OF[trigger])

    assert (stored(task), Event.objects.count()) == (before, events)
    possible = {name for source, _, name, _, kind in DECLARED if source == status and (name != "reopen" or kind == origin)}
    assert (refusal.value.status, refusal.value.code, refusal.value.current) == (409, "wrong_state", status)
    assert refusal.value.allowed == sorted(possible)
    assert status in refusal.value.message
    assert trigger in refusal.value.message


def test_the_table_knows_every_status_and_every_trigger() -> None:
    assert set(ALL.split()) == set(TaskStatus.values)
    known: Any = Task()
    assert {transition.name for transition in known.get_all_status_transitions()} == set(FIELDS_OF)
    assert set(Origin.values) == {"message", "backlog"}


def test_a_status_cannot_be_assigned(room: Room) -> None:
    task = make_task(room)
    with pytest.raises(AttributeError):
        task.status = TaskStatus.COMPLETED
    assert Task.objects.get(pk=task.pk).status == TaskStatus.PENDING


def test_retry_send_back_and_reopen_begin_a_new_round(room: Room) -> None:
    for status, trigger in (("failed", "retry"), ("pending_user_review", "send_back"), ("closed", "reopen")):
        task = make_task(room, "reviewer", status=status, origin="backlog", crashes=2, failure_reason="it broke")
        move(task, trigger, actor="alice", **({} if trigger == "reopen" else BUSY))
        assert Task.objects.get(pk=task.pk).round == 2
        if trigger == "retry":
            assert (task.crashes, task.failure_reason) == (0, "")
