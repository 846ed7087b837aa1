"""What only a timer can notice: each thing that is due is done once, and nothing else is touched."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection
from django.utils.timezone import now

from agents import sweep as agents_sweep
from agents.models import Agent, AgentKind, AgentStatus, Claim, Incarnation, Outcome
from agents.services.claims import agent_locked
from agents.sweep import expire_leases
from chatroom import sweep as sweeping
from chatroom.errors import NotFound
from chatroom.models import Event, IdempotencyRecord, Job, Message, MessageKind, Notice, Pulse, Room, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.signals import task_pending
from chatroom.sweep import each_due, keys_of, sweep
from tests.agents.playing import Program, everything, triggers
from tests.conftest import close_connections
from tests.daemon.processes import eventually
from tests.factories import make_agent, make_claim, make_held_task, make_room, make_task, make_user

pytestmark = pytest.mark.django_db


def ago(seconds: float) -> Any:
    return now() - timedelta(seconds=seconds)


def notices() -> list[str]:
    return list(Message.objects.filter(kind=MessageKind.NOTICE).values_list("text", flat=True))


def test_an_agent_whose_lease_is_over_is_dead_within_one_sweep(room: Room, pulse: Pulse) -> None:
    late, living = make_agent(room, lease=-1), make_agent(room, "reviewer", lease=1)
    sweep()
    after = Agent.objects.get(pk=late.pk)
    assert (after.status, after.lease_expires_at) == (AgentStatus.DEAD, None)
    assert after.error_message.startswith("its lease ran out: last heard of at")
    assert triggers(late) == ["heartbeat_expired"]
    assert Agent.objects.get(pk=living.pk).status == AgentStatus.READY


def test_sweeping_again_adds_nothing(room: Room, pulse: Pulse) -> None:
    make_held_task(room, lease=-1)
    make_task(room, "reviewer", status_since=ago(301))
    sweep()
    before = everything()
    for _ in range(3):
        assert not any(sweep().values())
    assert everything() == before


@pytest.mark.scenario(10)
@pytest.mark.parametrize("started", [True, False])
def test_a_working_custom_agent_that_made_no_call_is_dead_its_task_free_and_people_told_once(
    room: Room, pulse: Pulse, started: bool
) -> None:
    task, agent, claim = make_held_task(room, lease=-1, started=started)
    sweep()
    assert Agent.objects.get(pk=agent.pk).status == AgentStatus.DEAD
    after = Task.objects.get(pk=task.pk)
    assert (after.status, after.assigned_role, after.crashes) == (TaskStatus.PENDING, "builder", 0)
    assert Claim.objects.get(pk=claim.pk).outcome == Outcome.LEASE_EXPIRED
    assert triggers(task) == ["recover_orphaned" if started else "recover_stuck_acknowledged"]
    Task.objects.update(look_at=ago(1))
    sweep()
    [told] = notices()
    assert f"Task {task.pk} is waiting for builder again" in told
    assert "somebody has to start its wait_for_task command" in told
    assert Job.objects.filter(kind="pass_on_notice").count() == 1


@pytest.mark.scenario(9)
def test_a_working_remote_agent_without_any_call_for_hours_stays_working_while_its_lease_is_renewed(room: Room, pulse: Pulse) -> None:
    task, agent, claim = make_held_task(room, lease=60)
    Agent.objects.filter(pk=agent.pk).update(kind=AgentKind.REMOTE, status_since=ago(3 * 3600), last_seen_at=ago(5))
    Task.objects.filter(pk=task.pk).update(status_since=ago(3 * 3600))
    before = everything()
    sweep()
    assert everything() == before
    assert Claim.objects.get(pk=claim.pk).is_open


@pytest.mark.scenario(23)
def test_a_task_acknowledged_for_long_whose_holder_lives_is_not_touched(room: Room, pulse: Pulse) -> None:
    make_held_task(room, started=False, status_since=ago(1000))
    before = [row["status"] for row in Task.objects.values()], Event.objects.count()
    sweep()
    assert ([row["status"] for row in Task.objects.values()], Event.objects.count()) == before
    look_at = Task.objects.get().look_at
    assert look_at is not None
    assert look_at > now()


@pytest.mark.scenario(23)
@pytest.mark.parametrize("status", ["dead", "offline", "restarting", "dead_failed_revive"])
def test_a_task_acknowledged_for_long_whose_holder_is_gone_is_pending_again(room: Room, pulse: Pulse, status: str) -> None:
    """Only a fault leaves an open claim with a dead agent: whoever dies releases in the same transaction."""
    task, agent, claim = make_held_task(room, started=False, status_since=ago(121))
    Agent.objects.filter(pk=agent.pk).update(status=status, lease_expires_at=None, status_since=now())
    announced: list[tuple[int, str]] = []

    def note(task: Task, **_: Any) -> None:
        announced.append((task.pk, task.status))

    task_pending.connect(note)
    sweep()
    assert announced == [(task.pk, TaskStatus.PENDING)]
    assert (Task.objects.get(pk=task.pk).status, Claim.objects.get(pk=claim.pk).is_open) == (TaskStatus.PENDING, False)
    assert triggers(task) == ["recover_stuck_acknowledged"]


@pytest.mark.scenario(23)
def test_a_task_acknowledged_for_long_that_nobody_holds_is_pending_again_but_not_before_its_time(room: Room, pulse: Pulse) -> None:
    lost = make_task(room, status=TaskStatus.ACKNOWLEDGED, attempt=1, status_since=ago(121))
    recent = make_task(room, "reviewer", status=TaskStatus.ACKNOWLEDGED, attempt=1, status_since=ago(119))
    sweep()
    assert Task.objects.get(pk=lost.pk).status == TaskStatus.PENDING
    assert Task.objects.get(pk=recent.pk).status == TaskStatus.ACKNOWLEDGED


@pytest.mark.scenario(26)
@pytest.mark.parametrize("status", ["offline", "dead", "dead_failed_revive"])
def test_people_are_told_once_that_a_task_waits_for_a_custom_agent(room: Room, pulse: Pulse, status: str) -> None:
    agent, task = make_agent(room, status=status), make_task(room, status_since=ago(301))
    for _ in range(3):
        sweep()
    [told] = notices()
    assert f"Task {task.pk} has been waiting for builder for 5 min" in told
    assert Notice.objects.open().get().task_id == task.pk
    after = Agent.objects.get(pk=agent.pk)
    assert (after.status, Task.objects.get(pk=task.pk).status) == (status, TaskStatus.PENDING)


@pytest.mark.scenario(26)
def test_a_new_episode_is_told_again(room: Room, pulse: Pulse) -> None:
    task = make_task(room, status_since=ago(301))
    sweep()
    Task.objects.filter(pk=task.pk).update(status_since=ago(302), look_at=ago(2))  # claimed, and pending again, for 5 min
    sweep()
    sweep()
    assert len(notices()) == 2


@pytest.mark.scenario(26)
def test_nobody_is_told_before_the_time_or_while_the_agent_lives(room: Room, pulse: Pulse) -> None:
    make_task(room, status_since=ago(299))
    make_agent(room, "reviewer")
    waiting = make_task(room, "reviewer", status_since=ago(1000))
    sweep()
    assert notices() == []
    # It is looked at again: when the agent has gone meanwhile, people are told.
    make_agent(room, "reviewer", status=AgentStatus.OFFLINE)
    Task.objects.filter(pk=waiting.pk).update(look_at=ago(1))
    sweep()
    assert len(notices()) == 1


def test_a_custom_agent_dead_for_a_day_is_cleaned_up_and_its_history_kept(room: Room, pulse: Pulse) -> None:
    old = make_agent(room, status=AgentStatus.DEAD, status_since=ago(24 * 3600 + 1), error_message="it broke")
    recent = make_agent(room, "reviewer", status=AgentStatus.DEAD, status_since=ago(24 * 3600 - 60))
    sweep()
    after = Agent.objects.get(pk=old.pk)
    assert (after.status, after.incarnation, after.error_message) == (AgentStatus.OFFLINE, "", "it broke")
    assert triggers(old) == ["cleanup"]
    assert Agent.objects.get(pk=recent.pk).status == AgentStatus.DEAD


@pytest.mark.parametrize("fields", [{"kind": "remote"}, {"status": "dead_failed_revive"}])
def test_remote_and_unrecoverable_agents_are_not_cleaned_up(room: Room, pulse: Pulse, fields: dict[str, str]) -> None:
    agent = make_agent(room, **({"status": AgentStatus.DEAD, "status_since": ago(10**6)} | fields))
    sweep()
    assert triggers(agent) == []


def test_old_answers_and_incarnations_are_forgotten_and_recent_ones_kept(room: Room, pulse: Pulse) -> None:
    for key in ("old", "new"):
        fields = {"body_hash": "", "status_code": 200, "answer": {}}
        IdempotencyRecord.objects.create(principal="user:1", act="send_message", key=key, **fields)
    IdempotencyRecord.objects.filter(key="old").update(created_at=ago(24 * 3600 + 1))
    agent = make_agent(room)
    for key, seconds in (("ancient", 91 * 86400), ("older", 86400)):
        Incarnation.objects.create(agent=agent, key=key, ended_at=ago(seconds))
    sweep()
    assert list(IdempotencyRecord.objects.values_list("key", flat=True)) == ["new"]
    assert set(Incarnation.objects.values_list("key", flat=True)) == {"older", agent.incarnation}


def test_a_failing_step_is_said_and_does_not_stop_the_others(
    room: Room, pulse: Pulse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> int:
        raise ValueError("a fault of ours")

    def unlucky() -> int:
        raise DatabaseError("locked")

    late = make_agent(room, lease=-1)
    monkeypatch.setattr(sweeping, "STEPS", [broken, unlucky, *sweeping.STEPS])
    done = sweep()
    assert (done["expire_leases"], Agent.objects.get(pk=late.pk).status) == (1, AgentStatus.DEAD)
    assert "sweep step broken failed" in caplog.text
    assert "sweep step unlucky: locked" in caplog.text


def test_a_failing_row_does_not_stop_the_others(
    room: Room, pulse: Pulse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = make_agent(room, lease=-2), make_agent(room, "reviewer", lease=-1)
    expire = expire_lease_but(bad)
    monkeypatch.setattr("agents.sweep.expire_lease", expire)
    sweep()
    assert Agent.objects.get(pk=good.pk).status == AgentStatus.DEAD
    assert f"({room.pk}, {bad.pk}) failed" in caplog.text


def expire_lease_but(bad: Agent) -> Any:
    from agents.sweep import expire_lease

    def expire(room_id: int, agent_id: int) -> bool:
        if agent_id == bad.pk:
            raise ValueError("a row that is out of order")
        return expire_lease(room_id, agent_id)

    return expire


def test_a_sweep_does_more_than_one_batch(alice: User, pulse: Pulse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "BATCH", 2)
    monkeypatch.setattr(agents_sweep, "EXPIRED", Prepared[Agent](agents_sweep.EXPIRED.build))
    room = make_room(alice, name="Many", team="a,b,c,d,e")
    for role in room.team:
        make_agent(room, role, lease=-1)
    assert expire_leases() == 5


def test_a_batch_in_which_nothing_changes_is_not_repeated(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "BATCH", 2)
    seen: list[int] = []

    def change_nothing(_: int, pk: int) -> bool:
        seen.append(pk)
        return False

    assert each_due(lambda: list(keys_of(Agent.objects.order_by("pk"))), change_nothing) == 0
    assert len(seen) == 2


def test_a_sweep_leaves_its_time(pulse: Pulse) -> None:
    Pulse.objects.update(swept_at=ago(1000))
    sweep()
    assert Pulse.objects.get().swept_at > ago(5)


def test_an_agent_that_renews_while_the_sweep_looks_at_it_lives(room: Room, pulse: Pulse, alice: User) -> None:
    from agents.sweep import expire_lease

    program = Program(room, alice).connect()
    # The sweep chose it; its renewal came before the sweep had locked it.
    assert not expire_lease(room.pk, program.agent.pk)
    assert program.agent.status == AgentStatus.READY


def somebody_waits_for_a_lock() -> bool:
    """Only PostgreSQL can say so; on SQLite whoever comes second is made to wait where its transaction begins."""
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        return bool(cursor.fetchone()[0])


def test_a_room_or_an_agent_that_is_gone_is_called_so(room: Room) -> None:
    agent = make_agent(room)
    other = make_room(make_user("olga"), name="Other")
    for missing, what in ((other.pk, Agent.DoesNotExist), (0, NotFound)):
        with pytest.raises(what), agent_locked(missing, agent.pk):
            pytest.fail("it was found")


@pytest.mark.django_db(transaction=True)
def test_whoever_waited_for_the_room_sees_the_agent_as_it_is_by_then() -> None:
    room = make_room(make_user("olga"))
    agent = make_agent(room, lease=-1)
    begin, seen = threading.Barrier(2), []

    def look() -> None:
        begin.wait(20)
        with agent_locked(room.pk, agent.pk) as (locked, found):
            seen.append((locked.slug, found.connection))
        connection.close()

    thread = threading.Thread(target=look)
    thread.start()
    with room_locked(room.pk):
        begin.wait(20)
        eventually(somebody_waits_for_a_lock)
        Agent.objects.filter(pk=agent.pk).update(connection="another")
    thread.join(20)
    assert seen == [(room.slug, "another")]


@pytest.mark.django_db(transaction=True)
def test_two_sweeps_at_once_do_everything_once() -> None:
    owner = make_user("olga")
    Pulse.objects.create(pk=1)
    room = make_room(owner, name="Many", team=",".join(f"r{number}" for number in range(20)))
    for role in room.team:
        agent = make_agent(room, role, status=AgentStatus.WORKING, lease=-1)
        make_claim(make_task(room, role, status=TaskStatus.IN_PROGRESS, attempt=1), agent)
    begin, done = threading.Barrier(2), []

    def run() -> None:
        begin.wait(20)
        done.append(sweep())
        connection.close()

    sweeps = [threading.Thread(target=run) for _ in range(2)]
    for thread in sweeps:
        thread.start()
    for thread in sweeps:
        thread.join()
    close_connections()

    assert sum(counts["expire_leases"] for counts in done) == 20
    assert Event.objects.filter(trigger="heartbeat_expired").count() == 20
    assert Event.objects.filter(trigger="recover_orphaned").count() == 20
    assert Notice.objects.count() == len(notices()) == 20
    assert not Claim.objects.open().exists()
