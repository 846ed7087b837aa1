"""Is the agent there? Joining, renewing, coming back, being superseded, leaving."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from agents.models import Agent, AgentKind, AgentStatus, Claim, Incarnation, Outcome
from agents.services import dismiss_agent, leave_agent, report_progress, start_task
from agents.sweep import expire_leases
from chatroom.errors import Invalid, NotAllowed, NotFound, OutdatedClaim, RoleNotYours, Superseded, WrongState
from chatroom.models import Event, Pulse, Room, Task, TaskStatus
from chatroom.services.messages import send_message
from tests.agents.playing import Program, everything, take, task_of, triggers
from tests.factories import make_agent, principal_of

pytestmark = pytest.mark.django_db


def seconds_left(agent: Agent) -> float:
    assert agent.lease_expires_at is not None
    return (agent.lease_expires_at - now()).total_seconds()


def set_lease(agent: Agent, seconds: float) -> None:
    Agent.objects.filter(pk=agent.pk).update(lease_expires_at=now() + timedelta(seconds=seconds))


def declare_dead(program: Program) -> None:
    """What the sweep does when the lease is over."""
    set_lease(program.agent, -1)
    assert expire_leases() == 1


@pytest.mark.scenario(1)
def test_a_program_that_never_joined_joins_and_is_ready_with_a_lease_and_one_event(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    assert program.agent.status == AgentStatus.READY
    assert 80 < seconds_left(program.agent) <= 90
    assert program.agent.waiting_since is not None
    assert triggers(program.agent) == ["join"]


@pytest.mark.scenario(2)
def test_a_renewal_moves_the_lease_forward_and_writes_nothing_else(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    set_lease(program.agent, 20)
    before = dict(Agent.objects.values().get(pk=program.agent.pk))
    events = Event.objects.count()

    assert program.renew() == "ok"

    after = dict(Agent.objects.values().get(pk=program.agent.pk))
    assert {name for name in after if after[name] != before[name]} == {"lease_expires_at", "last_seen_at"}
    assert seconds_left(program.agent) > 80
    assert Event.objects.count() == events


def test_a_renewal_is_one_statement(room: Room, alice: User, django_assert_num_queries: DjangoAssertNumQueries) -> None:
    from agents.services import renew_lease

    program = Program(room, alice).connect()
    agent_id = program.agent.pk
    with django_assert_num_queries(1):
        assert renew_lease(agent_id, incarnation=program.incarnation)


def test_renewals_that_come_together_are_written_together_each_for_its_own_incarnation(
    room: Room, alice: User, pulse: Pulse, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    from agents.services import renew_leases

    builder, reviewer = (Program(room, alice, role=role).connect() for role in ("builder", "reviewer"))
    asked = [(builder.agent.pk, builder.incarnation), (reviewer.agent.pk, reviewer.incarnation)]
    for program in (builder, reviewer):
        set_lease(program.agent, 20)
    with django_assert_max_num_queries(4):
        assert renew_leases(asked) == [True, True]
    assert seconds_left(builder.agent) > 80
    assert seconds_left(reviewer.agent) > 80
    for program in (builder, reviewer):
        set_lease(program.agent, 20)
    assert renew_leases([asked[0], (reviewer.agent.pk, builder.incarnation)]) == [True, False]
    assert seconds_left(builder.agent) > 80
    assert seconds_left(reviewer.agent) < 21
    declare_dead(reviewer)
    assert renew_leases(asked) == [True, False]


@pytest.mark.scenario(3)
def test_the_older_start_is_superseded_and_the_lease_of_the_newer_one_is_not_touched(room: Room, alice: User) -> None:
    older, newer = Program(room, alice).connect(), Program(room, alice).connect()
    set_lease(newer.agent, 33)
    before = everything()
    with pytest.raises(Superseded, match="a newer start of builder took over at"):
        older.renew()
    assert everything() == before
    assert newer.renew() == "ok"


@pytest.mark.scenario(13)
def test_a_reconnect_of_an_older_start_never_displaces_the_newer_one(room: Room, alice: User) -> None:
    older, newer = Program(room, alice).connect(), Program(room, alice).connect()
    before = everything()
    for _ in range(3):
        with pytest.raises(Superseded):
            older.connect()
    assert everything() == before
    assert newer.agent.incarnation == newer.incarnation


def test_a_reconnect_of_a_start_that_nobody_knows_does_not_displace_a_living_one(room: Room, alice: User) -> None:
    newer = Program(room, alice).connect()
    with pytest.raises(Superseded, match="another start of builder is at work"):
        Program(room, alice, incarnation="forgotten").connect()
    assert newer.agent.incarnation == newer.incarnation


def test_a_reconnect_of_the_current_start_is_no_join(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    first = program.connection
    program.connect()
    assert triggers(program.agent) == ["join"]
    assert program.agent.connection == program.connection != first


def test_only_the_newest_socket_of_a_start_is_offered_work(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    older = Program(room, alice, incarnation=program.incarnation, connection=program.connection)
    program.connect()
    send_message(room.pk, text="do it", author=alice)
    with pytest.raises(Superseded):
        older.look()
    assert program.look() is not None


def test_a_new_start_while_working_takes_the_task_over_as_a_new_attempt(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice)
    newer = Program(room, alice).connect()
    assert Claim.objects.get(key=claim).outcome == Outcome.SUPERSEDED
    assert (newer.agent.status, task_of(claim).status) == (AgentStatus.READY, TaskStatus.PENDING)
    offer = newer.look()
    assert offer is not None
    assert (offer.attempt, offer.claim == claim) == (2, False)


def test_a_reconnect_while_working_gets_the_same_claim_again(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    first = program.look()
    program.connect()
    assert first is not None
    assert program.look() == first
    assert Claim.objects.count() == 1


@pytest.mark.scenario(4)
def test_a_dead_agent_that_shows_life_is_ready_again_as_the_same_start(room: Room, alice: User, pulse: Pulse) -> None:
    program = Program(room, alice).connect()
    declare_dead(program)
    assert program.agent.status == AgentStatus.DEAD
    assert program.renew() == "resume"
    assert (program.agent.status, program.agent.incarnation) == (AgentStatus.READY, program.incarnation)
    assert seconds_left(program.agent) > 80
    assert triggers(program.agent) == ["join", "heartbeat_expired", "resume"]


@pytest.mark.scenario(5)
def test_a_dead_agent_gets_its_unclaimed_task_back_as_it_was(room: Room, alice: User, pulse: Pulse) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    claim = program.take()
    declare_dead(program)
    assert task_of(claim).status == TaskStatus.PENDING

    said = report_progress(room.pk, claim, text="still here", principal=principal_of(alice))

    assert (said.task.status, said.task.attempt) == (TaskStatus.IN_PROGRESS, 1)
    assert (program.agent.status, Claim.objects.get(key=claim).is_open) == (AgentStatus.WORKING, True)
    assert Claim.objects.count() == 1
    assert triggers(said.task)[-2:] == ["recover_orphaned", "resume_task"]


@pytest.mark.scenario(5)
def test_a_claim_not_yet_started_is_resumed_as_acknowledged(room: Room, alice: User, pulse: Pulse) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    claim = program.take(start=False)
    declare_dead(program)
    assert program.renew() == "resume"
    assert task_of(claim).status == TaskStatus.ACKNOWLEDGED
    assert start_task(room.pk, claim, principal=principal_of(alice)).status == TaskStatus.IN_PROGRESS


@pytest.mark.scenario(5)
def test_a_new_process_gets_the_task_of_a_dead_one_as_a_new_attempt(room: Room, alice: User, pulse: Pulse) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    program.take()
    declare_dead(program)
    offer = Program(room, alice).connect().look()
    assert offer is not None
    assert offer.attempt == 2


@pytest.mark.scenario(6)
def test_a_dead_agent_whose_task_was_claimed_since_is_superseded(room: Room, alice: User, pulse: Pulse) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    old_claim = program.take()
    declare_dead(program)
    new_claim = take(room, alice)
    before = everything()

    with pytest.raises(Superseded):
        program.renew()
    with pytest.raises(OutdatedClaim, match="attempt 1 is yours, attempt 2 is with builder"):
        report_progress(room.pk, old_claim, text="late", principal=principal_of(alice))

    assert everything() == before
    assert Claim.objects.get(key=new_claim).is_open


@pytest.mark.parametrize("outcome", sorted(set(Outcome) - {Outcome.LEASE_EXPIRED}))
def test_only_a_claim_that_its_lease_ended_can_be_resumed(room: Room, alice: User, pulse: Pulse, outcome: str) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    claim = program.take()
    declare_dead(program)
    Claim.objects.filter(key=claim).update(outcome=outcome)
    assert program.renew() == "resume"
    assert (program.agent.status, task_of(claim).status) == (AgentStatus.READY, TaskStatus.PENDING)
    assert not Claim.objects.get(key=claim).is_open


def test_a_claim_is_not_resumed_after_a_person_ended_the_task(room: Room, alice: User, pulse: Pulse) -> None:
    from chatroom.services.tasks import cancel_task

    task = send_message(room.pk, text="do it", author=alice).task
    program = Program(room, alice).connect()
    claim = program.take()
    declare_dead(program)
    cancel_task(room.pk, task_id=task.pk, actor="alice")
    assert program.renew() == "resume"
    assert (program.agent.status, task_of(claim).status) == (AgentStatus.READY, TaskStatus.CLOSED)


@pytest.mark.scenario(12)
def test_a_late_goodbye_changes_nothing_for_the_successor(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    older = Program(room, alice).connect()
    take(room, alice)
    before = everything()
    leave_agent(room.pk, role="builder", actor="builder", incarnation=older.incarnation)
    older.end(planned=False)
    assert everything() == before


def test_a_goodbye_ends_the_agent_and_frees_its_task(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    claim = program.take()
    leave_agent(room.pk, role="builder", actor="builder", incarnation=program.incarnation)
    assert (program.agent.status, program.agent.lease_expires_at) == (AgentStatus.OFFLINE, None)
    assert (task_of(claim).status, Claim.objects.get(key=claim).outcome) == (TaskStatus.PENDING, Outcome.LEFT)
    assert task_of(claim).assigned_role == "builder"
    with pytest.raises(Superseded):
        program.renew()
    with pytest.raises(OutdatedClaim):
        start_task(room.pk, claim, principal=principal_of(alice))


def test_leaving_twice_writes_nothing(room: Room, alice: User) -> None:
    Program(room, alice).connect()
    leave_agent(room.pk, role="builder", actor="alice")
    before = everything()
    assert leave_agent(room.pk, role="builder", actor="alice").status == AgentStatus.OFFLINE
    assert everything() == before


def test_a_remote_agents_goodbye_changes_no_status_and_a_person_cannot_leave_for_it(room: Room) -> None:
    agent = make_agent(room, kind=AgentKind.REMOTE)
    before = everything()
    leave_agent(room.pk, role="builder", actor="builder", incarnation=agent.incarnation)
    with pytest.raises(NotAllowed, match="stop_agent"):
        leave_agent(room.pk, role="builder", actor="alice")
    assert everything() == before


@pytest.mark.scenario(96)
def test_a_person_cannot_wait_as_a_remote_role(room: Room, alice: User) -> None:
    make_agent(room, status=AgentStatus.OFFLINE, kind=AgentKind.REMOTE)
    before = everything()
    with pytest.raises(RoleNotYours, match="make it custom first"):
        Program(room, alice).connect()
    assert everything() == before


def test_outsiders_and_viewers_cannot_join(room: Room, charlie: User, vera: User) -> None:
    before = everything()
    with pytest.raises(NotFound):
        Program(room, charlie).connect()
    with pytest.raises(NotAllowed):
        Program(room, vera).connect()
    assert everything() == before
    assert not Incarnation.objects.exists()


def test_a_role_that_is_not_in_the_team_cannot_be_joined(room: Room, alice: User) -> None:
    with pytest.raises(NotFound, match="its roles are builder, reviewer") as refusal:
        Program(room, alice, "painter").connect()
    assert (refusal.value.code, refusal.value.allowed) == ("no_such_role", ["builder", "reviewer"])


def test_an_incarnation_has_its_limits(room: Room, alice: User) -> None:
    with pytest.raises(Invalid, match="expected 1 to 64"):
        Program(room, alice, incarnation="x" * 65).connect()


def test_a_socket_that_ends_without_a_word_leaves_ten_seconds(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    program.end(planned=False)
    assert 8 < seconds_left(program.agent) <= 10
    assert program.agent.waiting_since is None


def test_a_planned_end_keeps_the_lease(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    program.end(planned=True)
    assert seconds_left(program.agent) > 80
    assert program.agent.waiting_since is None


def test_the_end_of_an_older_socket_does_not_touch_the_newer_one(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    older = Program(room, alice, incarnation=program.incarnation, connection=program.connection)
    program.connect()
    before = everything()
    older.end(planned=False)
    assert everything() == before


def test_a_lost_socket_never_lengthens_a_lease_and_never_cuts_a_working_one(room: Room, alice: User) -> None:
    program = Program(room, alice).connect()
    set_lease(program.agent, 3)
    program.end(planned=False)
    assert seconds_left(program.agent) <= 3
    send_message(room.pk, text="do it", author=alice)
    second = Program(room, alice).connect()
    assert second.look() is not None
    second.end(planned=False)
    assert seconds_left(second.agent) > 100


@pytest.mark.parametrize("status", [AgentStatus.DEAD, AgentStatus.DEAD_FAILED_REVIVE])
def test_a_dismissed_agent_is_offline_and_cannot_come_back_as_the_same_start(room: Room, status: str) -> None:
    agent = make_agent(room, status=status)
    assert dismiss_agent(room.pk, role="builder", actor="alice").status == AgentStatus.OFFLINE
    assert triggers(agent) == ["cleanup"]
    assert not Incarnation.objects.filter(ended_at=None).exists()


@pytest.mark.parametrize("status", ["offline", "ready", "working", "restarting"])
def test_only_the_dead_are_dismissed(room: Room, status: str) -> None:
    make_agent(room, status=status)
    before = everything()
    with pytest.raises(WrongState):
        dismiss_agent(room.pk, role="builder", actor="alice")
    assert everything() == before


@pytest.mark.scenario(15)
def test_no_time_of_the_client_is_ever_read() -> None:
    """What an agent presents has no field for a time: only the server's clock counts."""
    import dataclasses
    import inspect

    from agents.services import complete_task, confirm_delivery, fail_task, handoff, renew_lease, show_life
    from agents.services.presence import Hello

    said = {field.name for field in dataclasses.fields(Hello)}
    for act in (start_task, report_progress, complete_task, handoff, fail_task, confirm_delivery, renew_lease, show_life):
        said |= set(inspect.signature(act).parameters)
    assert said == {
        "role", "incarnation", "connection", "joined", "room_id", "claim_key", "principal", "text", "next_role", "agent_id",
    }  # fmt: skip


def test_the_queue_of_a_superseded_program_is_not_lost(room: Room, alice: User) -> None:
    first, second = (send_message(room.pk, text=text, author=alice).task for text in ("one", "two"))
    take(room, alice)
    Program(room, alice).connect()
    assert [Task.objects.get(pk=task.pk).status for task in (first, second)] == [TaskStatus.PENDING, TaskStatus.QUEUED]
