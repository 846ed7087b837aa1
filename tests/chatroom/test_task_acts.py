"""What people do with tasks: cancel, reset, retry, force complete, the moves of the backlog."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus, Claim, Outcome
from agents.services import complete_task, handoff, report_progress
from chatroom.errors import Invalid, NotFound, OutdatedClaim, WrongState
from chatroom.models import Event, Message, Room, Task, TaskStatus
from chatroom.services.messages import add_backlog_item, send_message
from chatroom.services.tasks import TASK_ACTS, approve, cancel_task, force_complete, move_to_queue, reopen, reset, retry, send_back
from tests.agents.playing import Program, everything, take, triggers
from tests.factories import make_held_task, make_room, make_task, principal_of

pytestmark = pytest.mark.django_db

# The act of the interface, and the statuses the table allows it from.
BUT_FINISHED = {"backlog", "queued", "pending", "acknowledged", "in_progress", "pending_user_review", "failed"}
ALLOWED = {
    "cancel": BUT_FINISHED,
    "reset": {"acknowledged", "in_progress"},
    "retry": {"failed"},
    "force_complete": BUT_FINISHED,
    "move_to_queue": {"backlog"},
    "approve": {"pending_user_review"},
    "send_back": {"pending_user_review"},
    "reopen": {"completed", "closed"},
}


def test_every_act_is_in_the_table() -> None:
    assert set(TASK_ACTS) == set(ALLOWED)


@pytest.mark.scenario(21)
@pytest.mark.parametrize("status", TaskStatus.values)
@pytest.mark.parametrize("act", ALLOWED)
def test_an_act_from_another_status_changes_nothing(room: Room, act: str, status: str) -> None:
    task = make_task(room, status=status, origin="backlog")
    before = everything()
    if status in ALLOWED[act]:
        assert TASK_ACTS[act](room.pk, task_id=task.pk, actor="alice", reason="because").pk == task.pk
        assert Event.objects.filter(subject="task", subject_id=task.pk).count() == 1
    else:
        with pytest.raises(WrongState) as refusal:
            TASK_ACTS[act](room.pk, task_id=task.pk, actor="alice", reason="because")
        assert everything() == before
        assert refusal.value.current == status


@pytest.mark.parametrize("act", ALLOWED)
def test_an_act_reaches_only_tasks_of_its_room(room: Room, alice: User, act: str) -> None:
    other = make_room(alice, name="Other")
    tasks = [make_task(other, status=status) for status in ("backlog", "pending", "failed", "pending_user_review", "completed")]
    before = everything()
    for task in tasks:
        with pytest.raises(NotFound) as refusal:
            TASK_ACTS[act](room.pk, task_id=task.pk, actor="alice", reason="because")
        assert refusal.value.code == "no_such_task"
    assert everything() == before


@pytest.mark.scenario(34)
@pytest.mark.parametrize(
    ("act", "status", "outcome"),
    [(cancel_task, "closed", Outcome.CANCELLED), (reset, "pending", Outcome.RESET), (force_complete, "completed", Outcome.FORCED)],
)
def test_the_holder_of_a_task_that_was_taken_back_is_refused_with_the_reason(
    room: Room, alice: User, act: Callable[..., Task], status: str, outcome: str
) -> None:
    task, agent, claim = make_held_task(room)
    act(room.pk, task_id=task.pk, actor="bob", reason="not needed")

    assert Task.objects.get(pk=task.pk).status == status
    assert (Claim.objects.get(pk=claim.pk).outcome, Agent.objects.get(pk=agent.pk).status) == (outcome, AgentStatus.READY)
    assert triggers(agent) == ["task_released"]
    before = everything(but=Agent)
    with pytest.raises(OutdatedClaim, match="by bob: not needed") as refusal:
        report_progress(room.pk, claim.key, text="half", principal=principal_of(alice))
    assert refusal.value.current == status
    assert everything(but=Agent) == before


def test_a_reset_task_goes_to_the_next_program_as_a_new_attempt(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice)
    task = reset(room.pk, task_id=Claim.objects.get(key=claim).task_id, actor="alice")
    assert (task.status, task.assigned_role, task.crashes) == (TaskStatus.PENDING, "builder", 0)
    offer = Program(room, alice).connect().look()
    assert offer is not None
    assert offer.attempt == 2


@pytest.mark.parametrize("act", [cancel_task, force_complete])
def test_ending_an_active_task_promotes_the_queue(room: Room, alice: User, act: Callable[..., Task]) -> None:
    first, second, third = (send_message(room.pk, text=text, author=alice).task for text in ("one", "two", "three"))
    act(room.pk, task_id=second.pk, actor="alice")
    assert Task.objects.get(pk=third.pk).status == TaskStatus.QUEUED
    act(room.pk, task_id=first.pk, actor="alice")
    assert Task.objects.get(pk=third.pk).status == TaskStatus.PENDING
    assert triggers(third) == ["create", "promote"]


def test_a_failed_task_is_tried_again_or_queued_behind_others(room: Room) -> None:
    failed = make_task(room, status=TaskStatus.FAILED, failure_reason="no", crashes=3)
    task = retry(room.pk, task_id=failed.pk, actor="alice")
    assert (task.status, task.failure_reason, task.crashes) == (TaskStatus.PENDING, "", 0)
    second = make_task(room, status=TaskStatus.FAILED)
    assert retry(room.pk, task_id=second.pk, actor="alice").status == TaskStatus.QUEUED


@pytest.mark.scenario(33)
def test_a_backlog_item_is_moved_worked_on_reviewed_sent_back_approved_reopened_and_closed(room: Room, alice: User) -> None:
    item = add_backlog_item(room.pk, text="tidy up", author=alice)
    act: dict[str, Any] = {"task_id": item.pk, "actor": "alice"}
    assert move_to_queue(room.pk, **act).status == TaskStatus.PENDING
    done = complete_task(room.pk, take(room, alice), text="tidied", principal=principal_of(alice))
    assert done.task.status == TaskStatus.PENDING_USER_REVIEW
    assert send_back(room.pk, reason="the cellar too", **act).status == TaskStatus.PENDING
    offer = Program(room, alice).connect().look()
    assert offer is not None
    assert [said["text"] for said in offer.context] == ["tidied", "the cellar too"]
    done = complete_task(room.pk, offer.claim, text="tidied all", principal=principal_of(alice))
    assert done.task.status == TaskStatus.PENDING_USER_REVIEW
    assert approve(room.pk, **act).status == TaskStatus.COMPLETED
    assert reopen(room.pk, **act).status == TaskStatus.PENDING_USER_REVIEW
    assert cancel_task(room.pk, reason="enough", **act).status == TaskStatus.CLOSED
    assert reopen(room.pk, **act).status == TaskStatus.PENDING_USER_REVIEW
    accepted = Claim.objects.filter(task=item, outcome=Outcome.COMPLETED).values_list("round", flat=True)
    assert sorted(accepted) == [1, 2]


@pytest.mark.scenario(33)
@pytest.mark.parametrize("reason", ["", "  \n"])
def test_closing_a_backlog_item_and_sending_back_need_a_reason(room: Room, reason: str) -> None:
    item = make_task(room, status=TaskStatus.PENDING_USER_REVIEW, origin="backlog")
    before = everything()
    for act in (cancel_task, send_back):
        with pytest.raises(Invalid, match="needs a reason"):
            act(room.pk, task_id=item.pk, actor="alice", reason=reason)
    assert everything() == before
    message = make_task(room, status=TaskStatus.PENDING)
    assert cancel_task(room.pk, task_id=message.pk, actor="alice", reason=reason).status == TaskStatus.CLOSED


@pytest.mark.scenario(33)
def test_a_handed_on_backlog_item_keeps_its_origin_and_only_its_last_task_is_reviewed(room: Room, alice: User) -> None:
    item = add_backlog_item(room.pk, text="tidy up", author=alice, priority=7)
    move_to_queue(room.pk, task_id=item.pk, actor="alice")
    done = handoff(room.pk, take(room, alice), next_role="reviewer", text="tidied", principal=principal_of(alice))
    assert done.next_task is not None
    assert (done.task.status, done.next_task.origin, done.next_task.priority) == (TaskStatus.COMPLETED, "backlog", 7)
    last = handoff(room.pk, take(room, alice, "reviewer"), next_role="user", text="good", principal=principal_of(alice))
    assert last.task.status == TaskStatus.PENDING_USER_REVIEW


def test_a_backlog_item_moved_to_a_busy_role_is_queued(room: Room, alice: User) -> None:
    send_message(room.pk, text="first", author=alice)
    item = add_backlog_item(room.pk, text="tidy up", author=alice)
    assert move_to_queue(room.pk, task_id=item.pk, actor="alice").status == TaskStatus.QUEUED


@pytest.mark.scenario(27)
@pytest.mark.parametrize(("status", "act"), [("failed", retry), ("pending_user_review", send_back), ("completed", reopen)])
def test_crashes_are_counted_anew_when_a_person_wants_it_once_more(room: Room, status: str, act: Any) -> None:
    item = make_task(room, status=status, origin="backlog", crashes=2, round=1)
    reason = {"reason": "again"} if act is send_back else {}
    task = act(room.pk, task_id=item.pk, actor="alice", **reason)
    assert (task.crashes, task.round) == (0, 2)


def test_a_task_sent_back_to_a_busy_role_is_queued_and_its_reason_is_said(room: Room, alice: User) -> None:
    item = make_task(room, status=TaskStatus.PENDING_USER_REVIEW, origin="backlog")
    send_message(room.pk, text="first", author=alice)
    assert send_back(room.pk, task_id=item.pk, actor="alice", reason="more tests").status == TaskStatus.QUEUED
    said = Message.objects.get(text="more tests")
    assert (said.sender, said.to, said.task_id) == ("alice", "builder", item.pk)


def test_a_reason_with_text_that_cannot_be_stored_is_refused(room: Room) -> None:
    item = make_task(room, status=TaskStatus.PENDING_USER_REVIEW, origin="backlog")
    before = everything()
    for reason in ("a\0b", "a\ud800"):
        for act in TASK_ACTS:
            with pytest.raises((Invalid, WrongState)):
                TASK_ACTS[act](room.pk, task_id=item.pk, actor="alice", reason=reason)
            assert everything() == before
