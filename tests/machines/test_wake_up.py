"""Wake-up is a condition: work waits, its agent is away, its machine is there, nobody and nothing speaks against it. Then one start."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from agents.sweep import expire_leases, look_at_tasks
from chatroom.models import Event, Notice, Pulse, Task, TaskStatus
from chatroom.services.messages import send_message
from chatroom.services.tasks import cancel_task
from machines.models import Command, Desired, Machine, MachineStatus, Placement, Run
from machines.services.connection import Introduction, connect_machine, finish_replay, note_absence
from machines.services.desire import start_agent, stop_agent, wake_up
from machines.sweep import wake_agents
from tests.factories import make_task

from .playing import Daemon, Program, newest_event, told

pytestmark = pytest.mark.django_db

Hinder = Callable[[Daemon], object]


def send(daemon: Daemon, alice: User, text: str = "do it") -> Task:
    return send_message(daemon.room.pk, text=text, author=alice).task


def wait_long() -> None:
    Task.objects.update(status_since=now() - timedelta(seconds=301), look_at=now() - timedelta(seconds=1))


def starts(daemon: Daemon) -> int:
    return Command.objects.filter(agent=daemon.agent, act="start_agent").count()


@pytest.mark.scenario(26)
def test_a_message_starts_an_agent_that_was_never_started(daemon: Daemon, alice: User) -> None:
    send(daemon, alice)
    assert (daemon.agent.status, daemon.placement.desired_state, daemon.placement.generation) == ("restarting", Desired.RUNNING, 1)
    assert (daemon.command.act, daemon.command.actor, daemon.command.state) == ("start_agent", "chatroom", "pending")
    assert Program(daemon.start()).join(joined=True).take().task.text == "do it"


@pytest.mark.scenario(50)
def test_more_messages_start_nothing_more(daemon: Daemon, alice: User) -> None:
    for number in range(5):
        send(daemon, alice, f"do it {number}")
    assert (starts(daemon), daemon.placement.generation) == (1, 1)


@pytest.mark.scenario(90)
def test_with_a_clock_set_back_the_sweep_starts_it_all_the_same(daemon: Daemon, pulse: Pulse) -> None:
    Placement.objects.update(desired_state=Desired.RUNNING, generation=1)
    make_task(daemon.room)
    Task.objects.update(status_since=now() + timedelta(hours=1))
    assert (wake_agents(), starts(daemon)) == (1, 1)


@pytest.mark.scenario(26)
def test_what_no_change_noticed_the_sweep_starts_once(daemon: Daemon, pulse: Pulse) -> None:
    """A fault swallowed the change: the task waits, its remote agent is offline, running is desired."""
    Placement.objects.update(desired_state=Desired.RUNNING, generation=1)
    make_task(daemon.room)
    wait_long()
    assert wake_agents() == 1
    seen = newest_event()
    for _ in range(3):
        assert wake_agents() == 0
        look_at_tasks()
    assert (starts(daemon), newest_event(), told(daemon.room)) == (1, seen, [])


@pytest.mark.scenario(26)
def test_of_a_custom_agents_task_people_are_told_once_and_nothing_is_started(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    send_message(daemon.room.pk, text="look", to="reviewer", author=alice)
    wait_long()
    for _ in range(3):
        look_at_tasks()
        wake_agents()
    assert len(told(daemon.room)) == 1
    assert "reviewer is OFFLINE, and a custom agent" in told(daemon.room)[0]
    assert not Command.objects.exists()


def test_a_dead_agent_with_work_is_restarted(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    daemon.start()
    Agent.objects.filter(pk=daemon.agent.pk).update(lease_expires_at=now() - timedelta(seconds=1))
    expire_leases()
    assert daemon.agent.status == AgentStatus.DEAD
    send(daemon, alice)
    assert (daemon.agent.status, daemon.placement.generation) == (AgentStatus.RESTARTING, 2)


def test_a_wake_up_forgets_no_exits_and_a_persons_start_does(daemon: Daemon, alice: User) -> None:
    daemon.exit(daemon.start(), do="none")
    since = daemon.placement.history_since
    send(daemon, alice)
    assert (daemon.placement.generation, daemon.placement.history_since) == (2, since)


# --- what speaks against it


def be_stopped(daemon: Daemon) -> None:
    stop_agent(daemon.room.pk, role="builder", actor="bob")


def be_away(daemon: Daemon) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")


def be_exhausted(daemon: Daemon) -> None:
    daemon.fail(daemon.open())


def be_frozen(daemon: Daemon) -> None:
    daemon.report("run.frozen", daemon.start())
    expire_leases()


def be_restarted(daemon: Daemon) -> None:
    daemon.exit(daemon.start())


def be_started(daemon: Daemon) -> None:
    start_agent(daemon.room.pk, role="builder", actor="bob")


HINDRANCES = [
    (be_stopped, "it was stopped by bob"),
    (be_away, "its machine laptop-7 is away"),
    (be_exhausted, "builder is unrecoverable: harness demo: program not found (on laptop-7). Restart it once mended."),
    (be_frozen, "its process is frozen (SIGSTOP)"),
]


@pytest.mark.scenario(26)
@pytest.mark.parametrize(("hinder", "reason"), HINDRANCES)
def test_where_it_must_not_be_started_people_are_told_once_why(
    daemon: Daemon, alice: User, pulse: Pulse, hinder: Hinder, reason: str
) -> None:
    hinder(daemon)
    commands = Command.objects.count()
    send(daemon, alice)
    wait_long()
    for _ in range(3):
        wake_agents()
        look_at_tasks()
        wake_up(daemon.room.pk, role="builder")
    assert Command.objects.count() == commands
    assert Task.objects.get().status == TaskStatus.PENDING
    assert len(told(daemon.room)) == 1, told(daemon.room)
    assert reason in told(daemon.room)[0]


@pytest.mark.parametrize("hinder", [be_restarted, be_started])
def test_where_somebody_is_at_it_nothing_is_started_and_nobody_told(daemon: Daemon, alice: User, pulse: Pulse, hinder: Hinder) -> None:
    hinder(daemon)
    commands = Command.objects.count()
    send(daemon, alice)
    wait_long()
    wake_agents()
    assert (Command.objects.count(), told(daemon.room)) == (commands, [])


def test_another_episode_is_told_again(daemon: Daemon, alice: User) -> None:
    be_stopped(daemon)
    first = send(daemon, alice)
    cancel_task(daemon.room.pk, task_id=first.pk, actor="alice")
    second = send(daemon, alice)
    assert [f"Task {task.pk} waits for builder" in text for task, text in zip([first, second], told(daemon.room), strict=True)] == [
        True,
        True,
    ]
    assert Notice.objects.open().count() == 1


def test_a_machine_that_is_back_starts_what_waited_for_it(daemon: Daemon, alice: User) -> None:
    be_away(daemon)
    send(daemon, alice)
    Machine.objects.update(status=MachineStatus.CONNECTED, connection="socket-2")
    finish_replay(daemon.machine.pk, living=[])
    assert (daemon.agent.status, starts(daemon)) == (AgentStatus.RESTARTING, 1)


def test_a_persons_start_of_a_stopped_agent_gives_it_the_work_that_waited(daemon: Daemon, alice: User) -> None:
    be_stopped(daemon)
    task = send(daemon, alice)
    assert Program(daemon.start()).join(joined=True).take().task_id == task.pk


def test_an_agent_whose_daemon_ends_is_not_started_in_the_same_breath(daemon: Daemon, alice: User) -> None:
    send(daemon, alice)
    Program(daemon.start()).join(joined=True).take()
    daemon.exit(daemon.run, 0, asked="daemon_stop", do="none")
    daemon.stopped()
    wake_up(daemon.room.pk, role="builder")
    assert (daemon.agent.status, Task.objects.get().status, daemon.placement.generation) == (AgentStatus.OFFLINE, "pending", 1)
    note_absence(daemon.machine.pk, connection="socket-1", trigger="disconnect", reason="goodbye")
    connect_machine(daemon.machine.pk, Introduction.read({"instance": "instance-2"}, connection="socket-2"))
    finish_replay(daemon.machine.pk, living=[])
    assert (daemon.agent.status, daemon.placement.generation, len(told(daemon.room))) == (AgentStatus.RESTARTING, 2, 1)


def test_the_quiet_time_holds_the_sweep_back(daemon: Daemon, pulse: Pulse) -> None:
    make_task(daemon.room)
    wait_long()
    Pulse.objects.update(quiet_until=now() + timedelta(seconds=60))
    assert wake_agents() == 0
    assert not Command.objects.exists()


def test_one_agent_that_can_not_be_looked_at_does_not_stop_the_others(
    daemon: Daemon, pulse: Pulse, caplog: pytest.LogCaptureFixture
) -> None:
    """A remote agent without a placement can't be: a fault made it."""
    Agent.objects.filter(room=daemon.room, role="reviewer").update(kind="remote")
    make_task(daemon.room, "reviewer")
    make_task(daemon.room)
    wait_long()
    wake_agents()
    assert starts(daemon) == 1
    assert not Run.objects.exists()
    assert not Event.objects.filter(role="reviewer", subject="agent").exists()
