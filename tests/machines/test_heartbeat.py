"""A heartbeat vouches for the processes that its daemon sees alive: one statement for all of them."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim
from agents.sweep import expire_leases
from chatroom.models import Event, Pulse, Room, Task, TaskStatus
from chatroom.services.messages import send_message
from chatroom.services.tasks import reset
from machines.models import Machine, MachineStatus, Run
from machines.services.connection import Introduction, connect_machine, finish_replay, resume_dead, vouch
from tests.factories import make_agent, make_machine, make_placement, make_run

from .playing import Daemon, newest_event, triggers, working

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


def age_lease(agent: Agent, seconds: float = -1) -> None:
    Agent.objects.filter(pk=agent.pk).update(lease_expires_at=now() + timedelta(seconds=seconds))


def seconds_left(agent: Agent) -> float:
    lease = Agent.objects.get(pk=agent.pk).lease_expires_at
    assert lease is not None
    return (lease - now()).total_seconds()


@pytest.fixture
def claim(daemon: Daemon, alice: User) -> Claim:
    send_message(daemon.room.pk, text="do it", author=alice)
    return working(daemon)


@pytest.mark.scenario(9)
def test_a_working_agent_is_renewed_by_its_machine_alone_and_nothing_is_written_down(daemon: Daemon, claim: Claim) -> None:
    age_lease(daemon.agent, 5)
    seen = newest_event()
    assert vouch(daemon.machine.pk, runs=[daemon.run.pk]).superseded == []
    assert seconds_left(daemon.agent) > 80
    assert (newest_event(), daemon.agent.status) == (seen, AgentStatus.WORKING)


def test_one_update_renews_every_working_agent_in_order_and_waits_for_nobody(machine: Machine, alice: User, room: Room) -> None:
    runs = []
    for role in ("builder", "reviewer"):
        agent = make_agent(room, role, status=AgentStatus.WORKING, lease=5)
        runs.append(make_run(make_placement(machine, agent)).pk)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        vouch(machine.pk, runs=runs)
    updates = [query["sql"] for query in queries if query["sql"].startswith("UPDATE")]
    assert len(updates) == 1
    assert "ORDER BY" in updates[0]
    if connection.vendor == "postgresql":
        assert "SKIP LOCKED" in updates[0]
    assert all(seconds_left(agent) > 80 for agent in Agent.objects.filter(room=room))
    assert len(queries) <= 5  # however many agents: the look, a transaction, the update


def test_a_waiting_agent_is_renewed_by_its_own_socket_only(daemon: Daemon) -> None:
    run = daemon.start()
    age_lease(daemon.agent, 5)
    vouch(daemon.machine.pk, runs=[run.pk])
    assert seconds_left(daemon.agent) < 6


def test_a_run_that_is_not_the_current_one_is_superseded(daemon: Daemon) -> None:
    old = daemon.start()
    daemon.exit(old)
    new = daemon.open()
    assert vouch(daemon.machine.pk, runs=[old.pk, new.pk, 999]).superseded == [old.pk, 999]


def test_a_run_of_another_machine_is_not_vouched_for(daemon: Daemon, claim: Claim, bob: User) -> None:
    age_lease(daemon.agent, 5)
    assert vouch(make_machine(bob, "other").pk, runs=[daemon.run.pk]).superseded == [daemon.run.pk]
    assert seconds_left(daemon.agent) < 6


def test_an_agent_whose_other_start_took_over_is_not_renewed(daemon: Daemon, claim: Claim) -> None:
    Agent.objects.update(incarnation="somebody else")
    age_lease(daemon.agent, 5)
    vouch(daemon.machine.pk, runs=[daemon.run.pk])
    assert seconds_left(daemon.agent) < 6


def test_nonsense_in_a_heartbeat_is_passed_over(daemon: Daemon) -> None:
    assert vouch(daemon.machine.pk, runs=["x", None, {}, 10**30]).superseded == []


# --- declared dead while its process lived


def die(daemon: Daemon) -> None:
    age_lease(daemon.agent)
    expire_leases()
    assert daemon.agent.status == AgentStatus.DEAD


def beat(daemon: Daemon) -> None:
    vouched = vouch(daemon.machine.pk, runs=[daemon.run.pk])
    resume_dead(daemon.machine, vouched.dead)


@pytest.mark.scenario(25)
def test_a_machine_that_was_cut_off_gets_its_agent_back_with_its_claim(daemon: Daemon, claim: Claim, pulse: Pulse) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    die(daemon)
    assert Task.objects.get().status == TaskStatus.PENDING
    run = daemon.run
    living = {"run": run.pk, "agent": run.agent_id, "generation": 1, "state": "running", "pid": 4711, "stopped": False}
    connect_machine(daemon.machine.pk, Introduction.read({"instance": "instance-1", "runs": [living]}, connection="socket-2"))
    finish_replay(daemon.machine.pk, living=[run.pk])
    assert (daemon.agent.status, daemon.run.pk, daemon.placement.generation) == (AgentStatus.WORKING, run.pk, 1)
    assert Claim.objects.get().is_open
    assert Task.objects.get().attempt == 1


@pytest.mark.scenario(86)
def test_a_ready_agent_of_a_machine_that_is_back_is_not_needlessly_restarted(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    run = daemon.start()
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    die(daemon)
    send_message(daemon.room.pk, text="do it", author=alice)
    living = {"run": run.pk, "state": "running", "pid": 4711}
    connect_machine(daemon.machine.pk, Introduction.read({"instance": "instance-1", "runs": [living]}, connection="socket-2"))
    finish_replay(daemon.machine.pk, living=[run.pk])
    assert (daemon.agent.status, daemon.run.pk) == (AgentStatus.READY, run.pk)
    assert triggers(daemon.agent)[-2:] == ["heartbeat_expired", "resume"]


def test_a_heartbeat_brings_back_an_agent_with_its_claim(daemon: Daemon, claim: Claim, pulse: Pulse) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED)
    die(daemon)
    beat(daemon)
    assert (daemon.agent.status, Task.objects.get().status) == (AgentStatus.WORKING, TaskStatus.IN_PROGRESS)
    assert triggers(claim.task)[-2:] == ["recover_orphaned", "resume_task"]


def test_a_heartbeat_does_not_wake_an_agent_that_just_does_not_wait_for_work(daemon: Daemon, pulse: Pulse) -> None:
    daemon.start()
    die(daemon)
    seen = newest_event()
    beat(daemon)
    assert (daemon.agent.status, newest_event()) == (AgentStatus.DEAD, seen)


def test_a_claim_that_a_person_took_away_does_not_come_back(daemon: Daemon, claim: Claim, pulse: Pulse, alice: User) -> None:
    reset(daemon.room.pk, task_id=claim.task_id, actor="alice")
    Machine.objects.update(status=MachineStatus.DISCONNECTED)
    die(daemon)
    beat(daemon)
    assert daemon.agent.status == AgentStatus.DEAD
    assert not Claim.objects.open().exists()


def test_a_process_that_ended_after_its_agent_died_can_not_resume(daemon: Daemon, claim: Claim, pulse: Pulse) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED)
    die(daemon)
    daemon.exit(daemon.run, do="none")
    assert (daemon.agent.status, daemon.agent.incarnation, daemon.agent.error_message) == (AgentStatus.DEAD, "", "ended with exit code 3")
    run = Run.objects.get()
    assert vouch(daemon.machine.pk, runs=[run.pk]).superseded == [run.pk]
    assert not Event.objects.filter(trigger="resume").exists()
