"""An agent that runs is moved: stopped first, then configured, then started where it lives now."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus
from chatroom.errors import ChatroomError, Invalid, NotFound, WrongState
from chatroom.jobs import run_job
from chatroom.models import Job, JobState, Task, TaskStatus
from chatroom.services.messages import send_message
from machines.models import Command, Desired, Machine, MachineStatus, Placement, Run
from machines.services.configuration import configure_agent
from machines.services.desire import restart_agent, start_agent, stop_agent
from machines.services.moving import move_agent
from machines.services.revocation import revoke_machine
from tests.factories import make_machine

from .playing import Daemon, newest_event, told, working

pytestmark = pytest.mark.django_db


@pytest.fixture
def desk(alice: User) -> Machine:
    return make_machine(alice, "desk")


def move(daemon: Daemon, user: User, **wish: Any) -> Agent:
    return move_agent(daemon.room.pk, role="builder", user=user, **wish)


def end(daemon: Daemon, run: Run) -> None:
    """The daemon has stopped it, as it was asked to."""
    daemon.exit(run, None, signal=15, asked="stop", do="none")
    daemon.stopped()


def work() -> list[str]:
    """What the worker does."""
    waiting = list(Job.objects.filter(state=JobState.WAITING).order_by("pk"))
    return [row.kind for row in waiting if run_job(row.pk)]


def test_a_running_agent_is_stopped_then_moved_then_started_there(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    assert (daemon.placement.machine, daemon.command.act, daemon.agent.accepts_work) == (daemon.machine, "stop_agent", False)
    assert work() == []
    end(daemon, run)
    assert work() == ["finish_move"]
    assert (daemon.placement.machine, daemon.placement.moving, daemon.placement.desired_state) == (desk, None, Desired.RUNNING)
    assert (daemon.agent.status, daemon.command.act, daemon.command.machine) == (AgentStatus.RESTARTING, "start_agent", desk)
    assert work() == []


def test_its_task_goes_with_it_and_nobody_is_told_that_it_waits(daemon: Daemon, alice: User, desk: Machine) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    move(daemon, alice, machine="desk")
    end(daemon, daemon.run)
    work()
    assert (Task.objects.get().status, daemon.command.machine, told(daemon.room)) == (TaskStatus.PENDING, desk, [])


def test_a_running_agent_that_becomes_custom_is_stopped_first_and_started_by_nobody(daemon: Daemon, alice: User) -> None:
    run = daemon.start()
    assert not move(daemon, alice, kind="custom").is_custom
    end(daemon, run)
    work()
    assert (daemon.agent.is_custom, daemon.agent.status, Placement.objects.exists()) == (True, AgentStatus.OFFLINE, False)
    assert list(Command.objects.order_by("pk").values_list("act", flat=True)) == ["start_agent", "stop_agent"]


def test_one_that_a_person_had_stopped_is_not_started_by_its_move(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    stop_agent(daemon.room.pk, role="builder", actor="bob")
    move(daemon, alice, machine="desk")
    end(daemon, run)
    work()
    assert (daemon.placement.machine, daemon.agent.status, daemon.placement.desired_state) == (desk, AgentStatus.OFFLINE, "stopped")


def test_of_two_wishes_the_later_one_comes_true_and_it_is_started_there(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    move(daemon, alice, machine="laptop-7", model="small")
    end(daemon, run)
    work()
    assert (daemon.placement.machine, daemon.placement.model, daemon.placement.moving) == (daemon.machine, "small", None)
    assert (daemon.agent.status, Command.objects.filter(act="stop_agent").count()) == (AgentStatus.RESTARTING, 1)


def test_what_the_command_configures_meanwhile_wins_over_the_move(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    configure_agent(daemon.room.pk, role="builder", user=alice, model="small")
    end(daemon, run)
    assert work() == []
    assert (daemon.placement.machine, daemon.placement.model, daemon.placement.moving) == (daemon.machine, "small", None)


def test_without_a_process_it_is_configured_at_once(daemon: Daemon, alice: User, desk: Machine) -> None:
    move(daemon, alice, machine="desk")
    assert (daemon.placement.machine, daemon.placement.moving, Command.objects.exists()) == (desk, None, False)


def test_what_moves_nothing_stops_nothing(daemon: Daemon, alice: User) -> None:
    daemon.start()
    move(daemon, alice, model="small")
    assert (daemon.placement.model, daemon.agent.status) == ("small", AgentStatus.READY)


@pytest.mark.parametrize("act", [start_agent, stop_agent, restart_agent])
def test_a_later_press_wins_over_the_move(daemon: Daemon, alice: User, desk: Machine, act: Any) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    act(daemon.room.pk, role="builder", actor="bob")
    end(daemon, run)
    work()
    assert daemon.placement.machine == daemon.machine


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"machine": "shelf"}, NotFound, "there is no machine 'shelf' of yours"),
        ({"machine": "desk", "harness": "codex"}, Invalid, "harness 'codex': desk offers demo"),
        ({"machine": "desk", "directory": "/etc"}, Invalid, "directory '/etc': desk allows"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_stopped(
    daemon: Daemon, alice: User, desk: Machine, wish: dict[str, str], error: type[ChatroomError], words: str
) -> None:
    daemon.start()
    before = newest_event()
    with pytest.raises(error, match=words):
        move(daemon, alice, **wish)
    assert (newest_event(), daemon.agent.status, daemon.placement.moving) == (before, AgentStatus.READY, None)


def test_what_has_become_impossible_meanwhile_stands_in_its_row(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    revoke_machine(desk, actor="alice")
    end(daemon, run)
    work()
    assert (daemon.placement.machine, daemon.placement.moving, daemon.agent.status) == (daemon.machine, None, AgentStatus.OFFLINE)
    assert (daemon.command.act, daemon.command.state, daemon.command.actor) == ("start_agent", "failed", "alice")
    assert daemon.command.outcome == "builder was stopped and could not be moved: there is no machine 'desk' of yours"


def test_while_its_machine_is_away_it_is_refused_with_the_way_out(daemon: Daemon, alice: User, desk: Machine) -> None:
    daemon.start()
    Machine.objects.filter(pk=daemon.machine.pk).update(status=MachineStatus.DISCONNECTED, connection="")
    with pytest.raises(WrongState, match="--force gives that run up"):
        move(daemon, alice, machine="desk")
    move(daemon, alice, machine="desk", force=True)
    assert daemon.placement.machine == desk


def test_one_whose_machine_goes_away_meanwhile_is_moved_by_force_or_when_that_is_revoked(
    daemon: Daemon, alice: User, desk: Machine
) -> None:
    daemon.start()
    move(daemon, alice, machine="desk")
    revoke_machine(daemon.machine, actor="alice", force=True)
    work()
    assert (daemon.placement.machine, daemon.agent.status) == (desk, AgentStatus.RESTARTING)


def test_a_second_report_of_the_end_moves_nothing_twice(daemon: Daemon, alice: User, desk: Machine) -> None:
    run = daemon.start()
    move(daemon, alice, machine="desk")
    end(daemon, run)
    daemon.stopped()
    assert work() == ["finish_move", "finish_move"]
    assert Command.objects.filter(act="start_agent", machine=desk).count() == 1
