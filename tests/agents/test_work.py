"""What an agent does with its task: start, progress, complete, hand off, fail; and what an outdated claim may still do."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus, Claim, Outcome
from agents.services import abandon_offer, complete_task, confirm_delivery, fail_task, handoff, report_progress, start_task
from agents.services.work import keep_late_result
from chatroom.errors import Invalid, NotAllowed, NotFound, OutdatedClaim, RoleNotYours
from chatroom.models import Event, Message, MessageKind, Room, Task, TaskStatus, TokenKind
from chatroom.principals import Principal
from chatroom.services.messages import send_message
from chatroom.services.tasks import reset
from tests.agents.playing import Program, everything, statuses, take, task_of, triggers
from tests.factories import make_agent, make_held_task, make_room, make_task, principal_of

pytestmark = pytest.mark.django_db

Act = Callable[..., Any]
ACTS: dict[str, Act] = {
    "start": lambda room, claim, principal: start_task(room.pk, claim, principal=principal),
    "progress": lambda room, claim, principal: report_progress(room.pk, claim, text="half", principal=principal),
    "complete": lambda room, claim, principal: complete_task(room.pk, claim, text="done", principal=principal),
    "handoff": lambda room, claim, principal: handoff(room.pk, claim, next_role="reviewer", text="done", principal=principal),
    "fail": lambda room, claim, principal: fail_task(room.pk, claim, text="no", principal=principal),
}
every_act = pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)


@every_act
def test_outsiders_viewers_and_other_roles_cannot_use_a_claim(room: Room, charlie: User, vera: User, act: Act) -> None:
    _, _, claim = make_held_task(room)
    other_role = Principal(0, TokenKind.AGENT, None, room.pk, "reviewer", 1)
    before = everything()
    for principal, refusal in ((principal_of(charlie), NotFound), (principal_of(vera), NotAllowed), (other_role, RoleNotYours)):
        with pytest.raises(refusal):
            act(room, claim.key, principal)
    assert everything() == before


@every_act
def test_a_claim_is_known_in_its_own_room_only(room: Room, alice: User, act: Act) -> None:
    other = make_room(alice, name="Other")
    _, _, claim = make_held_task(room)
    before = everything()
    for where, key in ((other, claim.key), (room, "c_unknown")):
        with pytest.raises(NotFound) as refusal:
            act(where, key, principal_of(alice))
        assert refusal.value.code == "no_such_claim"
    assert everything() == before


@pytest.mark.scenario(20)
@every_act
def test_without_a_claim_nothing_moves(room: Room, alice: User, act: Act) -> None:
    make_task(room)
    make_agent(room)
    before = everything()
    with pytest.raises(NotFound):
        act(room, "", principal_of(alice))
    assert everything() == before


@pytest.mark.scenario(20)
def test_an_unclaimed_task_cannot_be_started_and_the_refusal_names_what_can_be_done(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    from chatroom.errors import WrongState
    from chatroom.events import move

    task = make_task(room)
    with pytest.raises(WrongState) as refusal, caplog.at_level("INFO", logger="chatroom.events"):
        move(task, "start_task", actor="builder")
    assert refusal.value.allowed == ["cancel_task", "claim_task", "force_complete", "resume_task"]
    assert "task" in refusal.value.message
    assert f"move refused: task {task.pk} is pending, trigger start_task" in caplog.messages


@pytest.mark.scenario(28)
@every_act
def test_the_claim_of_an_outdated_attempt_is_refused_and_changes_nothing(room: Room, alice: User, act: Act) -> None:
    send_message(room.pk, text="do it", author=alice)
    old = take(room, alice)
    take(room, alice)
    before = everything()
    with pytest.raises(OutdatedClaim, match="was reassigned: attempt 1 is yours, attempt 2 is with builder") as refusal:
        act(room, old, principal_of(alice))
    assert (refusal.value.status, refusal.value.code, refusal.value.current) == (409, "outdated_claim", "in_progress")
    assert everything() == before


@every_act
def test_a_completed_claim_is_refused(room: Room, alice: User, act: Act) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice)
    complete_task(room.pk, claim, text="done", principal=principal_of(alice))
    before = everything(but=Agent)
    with pytest.raises(OutdatedClaim, match="completed by builder"):
        act(room, claim, principal_of(alice))
    assert everything(but=Agent) == before


def test_starting_moves_the_task_and_lengthens_the_lease_and_again_changes_no_status(room: Room, alice: User) -> None:
    task, agent, claim = make_held_task(room, started=False, lease=100)
    assert start_task(room.pk, claim.key, principal=principal_of(alice)).status == TaskStatus.IN_PROGRESS
    after = Agent.objects.get(pk=agent.pk)
    assert (after.lease_expires_at - agent.lease_expires_at).total_seconds() > 3000  # type: ignore[operator]
    assert start_task(room.pk, claim.key, principal=principal_of(alice)).status == TaskStatus.IN_PROGRESS
    assert triggers(task) == ["start_task"]


def test_progress_is_said_and_lengthens_the_lease(room: Room, alice: User) -> None:
    task, agent, claim = make_held_task(room, lease=100)
    done = report_progress(room.pk, claim.key, text="half", principal=principal_of(alice))
    assert done.message is not None
    assert (done.message.kind, done.message.sender, done.message.task_id) == (MessageKind.PROGRESS, "builder", task.pk)
    after = Agent.objects.get(pk=agent.pk)
    assert (after.lease_expires_at - agent.lease_expires_at).total_seconds() > 3000  # type: ignore[operator]
    assert (triggers(task), task_of(claim.key).status) == ([], TaskStatus.IN_PROGRESS)


@pytest.mark.parametrize("started", [True, False])
def test_completing_ends_claim_task_and_work_with_one_event_each(room: Room, alice: User, started: bool) -> None:
    task, agent, claim = make_held_task(room, started=started)
    done = complete_task(room.pk, claim.key, text="done", principal=principal_of(alice))
    assert (done.task.status, Claim.objects.get(pk=claim.pk).outcome) == (TaskStatus.COMPLETED, Outcome.COMPLETED)
    after = Agent.objects.get(pk=agent.pk)
    assert (after.status, after.lease_expires_at is not None, after.waiting_since) == (AgentStatus.READY, True, None)
    assert (triggers(task), triggers(agent)) == (["complete_task"], ["task_complete"])
    assert Message.objects.filter(kind=MessageKind.RESULT, text="done", to="user").count() == 1


@pytest.mark.scenario(30)
def test_a_handoff_is_one_transaction(room: Room, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    send_message(room.pk, text="one", author=alice)
    send_message(room.pk, text="two", author=alice)
    claim = take(room, alice)
    before = everything()

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the last step failed")

    with monkeypatch.context() as patch:
        patch.setattr("agents.services.work.promote_next", broken)
        with pytest.raises(RuntimeError):
            handoff(room.pk, claim, next_role="reviewer", text="done", principal=principal_of(alice))
    assert everything() == before

    done = handoff(room.pk, claim, next_role="reviewer", text="done", principal=principal_of(alice))
    assert statuses(room) == [("builder", "completed"), ("builder", "pending"), ("reviewer", "pending")]
    assert done.next_task is not None
    assert done.next_task.chain_id == done.task.chain_id


@pytest.mark.scenario(31)
def test_a_handoff_to_a_role_that_is_not_in_the_team_is_refused_and_the_task_still_held(room: Room, alice: User) -> None:
    _, _, claim = make_held_task(room)
    before = everything()
    with pytest.raises(NotFound, match="builder, reviewer, or user") as refusal:
        handoff(room.pk, claim.key, next_role="painter", text="done", principal=principal_of(alice))
    assert (refusal.value.code, refusal.value.allowed) == ("no_such_role", ["builder", "reviewer", "user"])
    assert everything() == before


@pytest.mark.parametrize("text", ["", " \n", "a\0", "\ud800"])
@pytest.mark.parametrize("act", [report_progress, complete_task, fail_task])
def test_a_text_that_cannot_be_stored_is_refused(room: Room, alice: User, act: Act, text: str) -> None:
    _, _, claim = make_held_task(room)
    before = everything()
    with pytest.raises(Invalid):
        act(room.pk, claim.key, text=text, principal=principal_of(alice))
    assert everything() == before


def test_a_failed_task_says_why_and_its_agent_goes_on_with_the_next(room: Room, alice: User) -> None:
    task, agent, claim = make_held_task(room)
    waiting = make_task(room, status=TaskStatus.QUEUED)
    fail_task(room.pk, claim.key, text="no compiler", principal=principal_of(alice))
    failed = Task.objects.get(pk=task.pk)
    assert (failed.status, failed.failure_reason) == (TaskStatus.FAILED, "no compiler")
    assert (Claim.objects.get(pk=claim.pk).outcome, triggers(agent)) == (Outcome.FAILED, ["task_released"])
    assert Task.objects.get(pk=waiting.pk).status == TaskStatus.PENDING


def test_a_failure_in_another_room_or_without_fail_fast_leaves_the_others_alone(room: Room, alice: User) -> None:
    _, _, claim = make_held_task(room)
    other, _, _ = make_held_task(room, "reviewer")
    fail_task(room.pk, claim.key, text="no", principal=principal_of(alice))
    assert Task.objects.get(pk=other.pk).status == TaskStatus.IN_PROGRESS


def test_in_a_fail_fast_room_the_other_active_tasks_end_with_it(alice: User) -> None:
    room = make_room(alice, name="Fast", team="planner,builder,reviewer,tester", fail_fast=True)  # type: ignore[arg-type]
    first, _, claim = make_held_task(room, "planner")
    started, holder, other_claim = make_held_task(room, "builder")
    acknowledged, _, _ = make_held_task(room, "reviewer", started=False)
    pending = make_task(room, "tester")
    queued = make_task(room, "builder", status=TaskStatus.QUEUED)
    backlog = make_task(room, "builder", status=TaskStatus.BACKLOG, origin="backlog")

    fail_task(room.pk, claim.key, text="no", principal=principal_of(alice))

    found = {task.pk: task for task in Task.objects.all()}
    assert found[first.pk].status == TaskStatus.FAILED
    for task in (started, acknowledged):
        assert found[task.pk].status == TaskStatus.FAILED
        assert found[task.pk].failure_reason.startswith(f"aborted: task {first.pk} failed")
    assert found[pending.pk].status == TaskStatus.CLOSED
    assert (found[queued.pk].status, found[backlog.pk].status) == (TaskStatus.PENDING, TaskStatus.BACKLOG)
    assert Claim.objects.get(pk=other_claim.pk).outcome == Outcome.ABORTED
    assert not Claim.objects.open().exists()
    assert Agent.objects.get(pk=holder.pk).status == AgentStatus.READY
    with pytest.raises(OutdatedClaim, match="aborted by chatroom"):
        report_progress(room.pk, other_claim.key, text="half", principal=principal_of(alice))


@pytest.mark.scenario(28)
def test_a_late_result_is_kept_once(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    old = take(room, alice)
    new = take(room, alice)
    for _ in range(2):
        keep_late_result(room.pk, old, text="my result")
    late = Message.objects.get(kind=MessageKind.LATE_RESULT)
    assert (late.text, late.sender, late.task_id) == ("my result", "builder", task_of(old).pk)
    assert Event.objects.filter(trigger="late_result").count() == 1
    assert (Claim.objects.get(key=new).is_open, task_of(new).status) == (True, TaskStatus.IN_PROGRESS)
    keep_late_result(room.pk, old, text="another result")
    assert Message.objects.filter(kind=MessageKind.LATE_RESULT).count() == 2


@pytest.mark.scenario(29)
def test_a_result_that_was_accepted_is_not_kept_again_as_a_late_one(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice)
    complete_task(room.pk, claim, text="done", principal=principal_of(alice))
    keep_late_result(room.pk, claim, text="done")
    assert not Message.objects.filter(kind=MessageKind.LATE_RESULT).exists()


@pytest.mark.scenario(22)
def test_an_offer_that_was_not_received_is_free_at_once_and_costs_nothing(room: Room, alice: User) -> None:
    task = send_message(room.pk, text="do it", author=alice).task
    program = Program(room, alice).connect()
    offer = program.look()
    assert offer is not None
    abandon_offer(offer.claim, room_id=room.pk, reason="its socket ended")
    after = Task.objects.get(pk=task.pk)
    assert (after.status, after.assigned_role, after.crashes) == (TaskStatus.PENDING, "builder", 0)
    assert (Claim.objects.get(key=offer.claim).outcome, program.agent.status) == (Outcome.UNDELIVERED, AgentStatus.READY)
    assert not confirm_delivery(offer.claim, room_id=room.pk, incarnation=program.incarnation)
    again = Program(room, alice).connect().look()
    assert again is not None
    assert (again.task, again.attempt) == (task.pk, 2)


def test_a_delivered_offer_is_not_abandoned(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice, start=False)
    before = everything()
    abandon_offer(claim, room_id=room.pk, reason="its socket ended")
    assert everything() == before


def test_a_delivery_is_confirmed_once_and_only_by_its_own_start(room: Room, alice: User) -> None:
    task = send_message(room.pk, text="do it", author=alice).task
    program = Program(room, alice).connect()
    offer = program.look()
    assert offer is not None
    assert not confirm_delivery(offer.claim, room_id=room.pk, incarnation="another")
    for _ in range(2):
        assert confirm_delivery(offer.claim, room_id=room.pk, incarnation=program.incarnation)
    assert triggers(task) == ["create", "claim_task", "deliver"]


def test_an_agent_that_is_late_is_offered_nothing_until_it_shows_life(room: Room, alice: User) -> None:
    from datetime import timedelta

    from django.utils.timezone import now

    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    Agent.objects.update(lease_expires_at=now() - timedelta(seconds=1))
    assert program.look() is None
    assert program.renew() == "ok"
    assert program.look() is not None


def test_an_agent_about_to_be_stopped_is_offered_nothing(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    Agent.objects.update(accepts_work=False)
    before = everything()
    assert program.look() is None
    assert everything() == before


def test_a_role_does_not_take_the_work_of_another_role_or_room(room: Room, alice: User) -> None:
    other = make_room(alice, name="Other")
    send_message(other.pk, text="do it", author=alice)
    send_message(room.pk, text="review", to="reviewer", author=alice)
    assert Program(room, alice).connect().look() is None


def test_a_task_that_was_reset_while_offered_is_withdrawn(room: Room, alice: User) -> None:
    task = send_message(room.pk, text="do it", author=alice).task
    program = Program(room, alice).connect()
    offer = program.look()
    assert offer is not None
    reset(room.pk, task_id=task.pk, actor="alice")
    assert not confirm_delivery(offer.claim, room_id=room.pk, incarnation=program.incarnation)
