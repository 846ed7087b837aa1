"""A machine is taken out of service at once, whatever lives there."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim
from chatroom.errors import NotSignedIn, RoleNotYours, WrongState
from chatroom.models import Event, Pulse, Room, Task, TaskStatus, Token
from chatroom.principals import resolve_token
from chatroom.services.messages import send_message
from chatroom.sweep import past
from machines import sweep
from machines.consumers import resolve_machine
from machines.models import Command, Machine, MachineStatus, Placement, Run
from machines.services.configuration import configure_agent
from machines.services.connection import Introduction, Revoked, connect_machine
from machines.services.desire import abort_run, restart_agent, start_agent, stop_agent
from machines.services.registration import register_machine
from machines.services.revocation import AgentsLiveThere, revoke_machine
from tests.factories import make_machine, make_placement, make_room

from .playing import Daemon, Program, newest_event, told, triggers, working

pytestmark = pytest.mark.django_db
WORDS = "laptop-7 was revoked by alice"


def revoke(daemon: Daemon) -> None:
    revoke_machine(daemon.machine, actor="alice", force=True)


def test_a_revoked_machines_token_is_unknown_and_its_name_free(alice: User) -> None:
    machine, secret = register_machine("laptop-9", platform="", owner=alice)
    revoke_machine(machine, actor="alice")
    with pytest.raises(NotSignedIn):
        resolve_machine(secret)
    assert not Machine.objects.visible_to(alice).exists()
    assert register_machine("laptop-9", platform="", owner=alice)[0].pk != machine.pk


def test_with_agents_it_takes_force_and_says_whom_it_concerns(daemon: Daemon) -> None:
    before = newest_event()
    with pytest.raises(AgentsLiveThere, match=r"laptop-7 still has agents \(builder of demo\): move them"):
        revoke_machine(daemon.machine, actor="alice")
    assert (Machine.objects.get().revoked_at, newest_event()) == (None, before)


def test_what_works_there_is_lost_with_it_and_its_task_is_free(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    claim, run, before = working(daemon), daemon.run, newest_event()
    secret = Token.objects.issue(kind="agent", name="run", room=daemon.room, role="builder", subject_id=run.pk)[1]

    revoke(daemon)

    ended = Run.objects.get(pk=run.pk)
    assert (ended.state, ended.verdict, ended.error_message) == ("failed", "lost", WORDS)
    assert (daemon.agent.status, daemon.agent.error_message) == (AgentStatus.DEAD, WORDS)
    task = Task.objects.get()
    assert (task.status, task.crashes, Claim.objects.get(pk=claim.pk).is_open) == (TaskStatus.PENDING, 0, False)
    with pytest.raises(NotSignedIn):
        resolve_token(secret)
    with pytest.raises(RoleNotYours):
        Program(run).join(joined=True)
    assert [triggers(subject, since=before) for subject in (daemon.machine, run, daemon.agent, task)] == [
        ["disconnect", "revoke"],
        ["fail"],
        ["process_exited"],
        ["recover_orphaned"],
    ]
    assert list(Event.objects.filter(pk__gt=before, subject="room").values_list("trigger", "reason")) == [("machine_revoke", WORDS)]


def test_people_are_told_once_in_each_room_and_not_again_by_later_work(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    other = make_room(alice, name="Other")
    make_placement(daemon.machine, Agent.objects.get(room=other, role="reviewer"))
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    revoke(daemon)
    send_message(daemon.room.pk, text="and this", author=alice)
    Pulse.objects.update(beat_at=now(), quiet_until=now())
    assert sweep.wake_agents() == 0
    assert not sweep.MISSED.plain_rows(tomorrow=now() + timedelta(days=1), **past(0)), "it is looked at again and again for nothing"
    assert told(daemon.room) == [f"{WORDS}. What lived there needs another machine, or a person who starts it: builder."]
    assert told(other) == [f"{WORDS}. What lived there needs another machine, or a person who starts it: reviewer."]
    assert daemon.agent.status == AgentStatus.DEAD


def test_one_that_is_just_restarting_is_dead_and_its_start_failed(daemon: Daemon) -> None:
    daemon.open()
    before = newest_event()
    revoke(daemon)
    assert (daemon.agent.status, daemon.agent.error_message, daemon.run.state) == (AgentStatus.DEAD, WORDS, "failed")
    assert (daemon.command.state, daemon.command.outcome) == ("failed", WORDS)
    assert [triggers(daemon.agent, since=before), triggers(daemon.command, since=before)] == [["restart_expired"], ["fail"]]


def test_one_that_waits_for_its_next_attempt_waits_no_more(daemon: Daemon) -> None:
    daemon.exit(daemon.start())
    assert daemon.agent.status == AgentStatus.RESTARTING
    revoke(daemon)
    assert (daemon.agent.status, daemon.placement.restart_at, daemon.placement.restart_attempt) == (AgentStatus.DEAD, None, 0)


def test_one_that_was_offline_stays_so(daemon: Daemon) -> None:
    before = newest_event()
    revoke(daemon)
    assert daemon.agent.status == AgentStatus.OFFLINE
    assert triggers(daemon.agent, since=before) == []
    assert Placement.objects.get().harness == "demo"


def test_a_stop_that_was_under_way_is_over(daemon: Daemon) -> None:
    daemon.start()
    stop_agent(daemon.room.pk, role="builder", actor="bob")
    abort_run(daemon.room.pk, role="builder", actor="bob")
    revoke(daemon)
    assert not Command.objects.in_flight().exists()
    assert (daemon.agent.status, daemon.placement.desired_state) == (AgentStatus.DEAD, "stopped")


def test_a_second_press_changes_nothing(daemon: Daemon) -> None:
    revoke(daemon)
    before, revoked = newest_event(), Machine.objects.get().revoked_at
    revoke(daemon)
    assert (newest_event(), Machine.objects.get().revoked_at) == (before, revoked)


@pytest.mark.parametrize("status", [MachineStatus.DISCONNECTED, MachineStatus.UNRESPONSIVE])
def test_one_that_is_away_is_revoked_all_the_same_and_may_not_come_back(daemon: Daemon, status: str) -> None:
    run = daemon.start()
    Machine.objects.update(status=status)
    revoke(daemon)
    assert (Machine.objects.get().status, daemon.agent.status) == (MachineStatus.DISCONNECTED, AgentStatus.DEAD)
    living = {"run": run.pk, "state": "running", "pid": 4711}
    with pytest.raises(Revoked, match="laptop-7 was revoked"):
        connect_machine(daemon.machine.pk, Introduction.read({"instance": "instance-1", "runs": [living]}, connection="socket-2"))


def test_nothing_starts_there_any_more_and_the_way_out_is_said(daemon: Daemon, alice: User) -> None:
    revoke(daemon)
    for act in (start_agent, restart_agent):
        with pytest.raises(WrongState, match="laptop-7 was revoked: configure builder to live on another machine first"):
            act(daemon.room.pk, role="builder", actor="bob")
    send_message(daemon.room.pk, text="do it", author=alice)
    assert not Command.objects.exists()


def test_it_is_moved_to_another_machine_and_its_task_starts_it_there(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    revoke(daemon)
    desk = make_machine(alice, "desk")
    configure_agent(daemon.room.pk, role="builder", user=alice, machine="desk")
    assert (daemon.placement.machine, daemon.placement.harness) == (desk, "demo")
    assert (daemon.agent.status, daemon.command.machine) == (AgentStatus.RESTARTING, desk)


def test_a_new_machine_of_the_same_name_is_another_one(daemon: Daemon, alice: User) -> None:
    revoke(daemon)
    new = make_machine(alice, "laptop-7")
    configure_agent(daemon.room.pk, role="builder", user=alice, machine="laptop-7")
    assert daemon.placement.machine == new


def test_agents_on_other_machines_are_not_touched(daemon: Daemon, alice: User, room: Room) -> None:
    make_placement(make_machine(alice, "desk"), Agent.objects.get(room=room, role="reviewer"))
    other = Daemon(Machine.objects.get(name="desk"), room, role="reviewer")
    run = other.start()
    revoke(daemon)
    assert (other.agent.status, Run.objects.get(pk=run.pk).state) == (AgentStatus.READY, "running")
