"""Where an agent lives and how it is started. Absent means unchanged."""

from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus, Claim
from agents.services import offer_next, start_task
from chatroom.errors import ChatroomError, Invalid, NotAllowed, NotFound, NotSignedIn, Superseded, WrongState
from chatroom.models import Event, Room, Task, TaskStatus, Token
from chatroom.principals import resolve_token
from chatroom.services.messages import send_message
from machines.models import Command, Desired, Machine, MachineStatus, Placement, Run
from machines.services.configuration import ProcessLives, configure_agent
from machines.services.connection import Introduction, connect_machine, finish_replay
from machines.services.desire import start_agent, stop_agent
from machines.services.telling import snapshot
from tests.factories import join, make_machine, make_placement, principal_of

from .playing import Daemon, Program, newest_event, working

pytestmark = pytest.mark.django_db


def configure(room: Room, user: User, **fields: Any) -> Agent:
    return configure_agent(room.pk, role="builder", user=user, **fields)


def placement(room: Room) -> Placement:
    return Placement.objects.select_related("machine").get(agent__room=room, agent__role="builder")


def refuse(room: Room, user: User, error: type[ChatroomError], words: str, **fields: Any) -> None:
    """And nothing is changed by it."""
    before, seen = list(Agent.objects.values()), newest_event()
    with pytest.raises(error, match=words):
        configure(room, user, **fields)
    assert (list(Agent.objects.values()), newest_event()) == (before, seen)


# --- made remote


def test_a_custom_agent_becomes_remote_on_demand(room: Room, alice: User, machine: Machine) -> None:
    agent = configure(room, alice, kind="remote", machine="laptop-7", harness="demo", directory="/home/alice/src/calc")
    found = placement(room)
    assert (agent.kind, agent.status, found.machine, found.harness) == ("remote", AgentStatus.OFFLINE, machine, "demo")
    assert (found.desired_state, found.generation, found.mode) == (Desired.ON_DEMAND, 0, "loop")
    event = Event.objects.latest("pk")
    assert (event.name, event.actor, event.room_id, event.data) == (
        "agent.configure",
        "alice",
        room.pk,
        {"kind": "remote", "machine": "laptop-7"},
    )


def test_a_machine_takes_as_many_agents_as_the_setting_says(room: Room, alice: User, machine: Machine, settings: LazySettings) -> None:
    settings.MACHINE_AGENTS = 1
    make_placement(machine, Agent.objects.get(room=room, role="reviewer"))
    words = "laptop-7 has 1 agents already: expected at most 1 on one machine"
    refuse(room, alice, WrongState, words, kind="remote", machine="laptop-7", harness="demo")
    configure_agent(room.pk, role="reviewer", user=alice, model="")  # who lives there already may be changed


def test_the_program_of_a_custom_agent_that_becomes_remote_is_told_so_and_its_task_waits(room: Room, alice: User, machine: Machine) -> None:
    send_message(room.pk, text="do it", author=alice)
    joined, hello = join(room, alice)
    configure(room, alice, kind="remote", machine="laptop-7", harness="demo")
    with pytest.raises(ChatroomError, match="remote agent"):
        join(room, alice, incarnation=hello.incarnation, joined=True)
    assert Agent.objects.get(pk=joined.agent_id).status == AgentStatus.RESTARTING  # work waits, so it is started at once
    assert (Task.objects.get().status, Command.objects.get().act) == (TaskStatus.PENDING, "start_agent")


def test_a_remote_agent_becomes_custom_and_its_machine_forgets_it(daemon: Daemon, alice: User) -> None:
    configure(daemon.room, alice, kind="custom")
    assert not Placement.objects.exists()
    assert snapshot(daemon.machine.pk) == []
    assert join(daemon.room, alice)[0].status == AgentStatus.READY


def test_an_agent_that_was_remote_before_goes_on_with_its_generations(daemon: Daemon, alice: User) -> None:
    daemon.exit(daemon.start(), do="none")
    configure(daemon.room, alice, kind="custom")
    configure(daemon.room, alice, kind="remote", machine="laptop-7", harness="demo")
    assert placement(daemon.room).generation == 1
    assert start_agent(daemon.room.pk, role="builder", actor="alice").generation == 2


# --- absent means unchanged


@pytest.mark.scenario(60)
def test_what_is_not_given_stays_as_it_was(daemon: Daemon, alice: User) -> None:
    Placement.objects.update(model="big", directory="/home/alice/src/calc")
    configure(daemon.room, alice)
    configure(daemon.room, alice, model="small")
    found = placement(daemon.room)
    assert (found.harness, found.model, found.directory, found.machine) == ("demo", "small", "/home/alice/src/calc", daemon.machine)
    configure(daemon.room, alice, directory="")
    assert (placement(daemon.room).directory, placement(daemon.room).model) == ("", "small")


def test_a_new_configuration_does_not_touch_what_runs_and_holds_from_the_next_start(daemon: Daemon, alice: User) -> None:
    run = daemon.start()
    configure(daemon.room, alice, model="small")
    assert (daemon.agent.status, daemon.run.model, daemon.placement.generation) == (AgentStatus.READY, "", 1)
    daemon.exit(run)
    assert daemon.open().model == "small"


def test_a_new_configuration_of_a_stopping_agent_offers_it_no_work(daemon: Daemon, alice: User) -> None:
    daemon.start()
    stop_agent(daemon.room.pk, role="builder", actor="alice")
    configure(daemon.room, alice, model="small")
    assert not daemon.agent.accepts_work


# --- refused with words


@pytest.mark.scenario(49)
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"harness": "codex"}, "harness 'codex': laptop-7 offers demo, other"),
        ({"harness": "demo; rm -rf /"}, "harness 'demo; rm -rf /': laptop-7 offers"),
        ({"model": "huge"}, "model 'huge': demo on laptop-7 offers big, small"),
        ({"directory": "/etc"}, "directory '/etc': laptop-7 allows /home/alice/src"),
        ({"directory": "/home/alice/src/../.ssh"}, "laptop-7 allows /home/alice/src"),
        ({"directory": "/home/alice/srcs"}, "laptop-7 allows"),
        ({"directory": "src"}, "laptop-7 allows"),
        ({"directory": "/home/alice/src/a\0b"}, "laptop-7 allows"),
        ({"mode": "task"}, "mode task: it comes in a later version, expected loop"),
        ({"mode": "odd"}, "mode 'odd': expected loop"),
        ({"kind": "odd"}, "kind 'odd': expected custom or remote"),
        ({"kind": "custom", "harness": "demo"}, "builder is a custom agent: machine, harness"),
    ],
)
def test_what_its_machine_does_not_offer_is_refused_with_what_it_does(
    daemon: Daemon, alice: User, fields: dict[str, Any], words: str
) -> None:
    models = {"demo": ["big", "small"], "other": []}
    Machine.objects.update(
        harnesses=[{"name": name, "version": "1", "models": found, "ok": True, "error": ""} for name, found in models.items()]
    )
    refuse(daemon.room, alice, Invalid, words, **fields)
    configure(daemon.room, alice, harness="other", model="any", directory="/home/alice/src/./calc")


def test_a_remote_agent_needs_a_machine_and_a_harness(room: Room, alice: User, machine: Machine) -> None:
    refuse(room, alice, Invalid, "builder has no machine yet: expected --machine", kind="remote", harness="demo")
    refuse(room, alice, Invalid, "builder has no harness yet: expected one of demo", kind="remote", machine="laptop-7")


def test_only_its_owner_places_agents_on_a_machine(daemon: Daemon, bob: User, charlie: User) -> None:
    refuse(daemon.room, bob, NotAllowed, "laptop-7 belongs to alice", machine="laptop-7")
    refuse(daemon.room, charlie, NotFound, "there is no machine 'laptop-7' of yours", machine="laptop-7")
    refuse(daemon.room, bob, NotFound, "there is no machine 'desk' of yours", machine="desk")


def test_what_a_machine_offers_is_not_known_before_it_came(room: Room, alice: User) -> None:
    make_machine(alice, "new", status=MachineStatus.DISCONNECTED, last_seen_at=None, harnesses=[], allow_dirs=[])
    configure(room, alice, kind="remote", machine="new", harness="codex", directory="/srv")
    assert placement(room).harness == "codex"


# --- moved


def test_moving_is_refused_while_a_process_lives(daemon: Daemon, alice: User) -> None:
    make_machine(alice, "desk")
    daemon.start()
    for fields in ({"machine": "desk"}, {"kind": "custom"}, {"machine": "desk", "force": True}):
        refuse(daemon.room, alice, ProcessLives, r"builder has a process on laptop-7 \(running\): stop it first", **fields)


def test_a_stopped_agent_moves_and_begins_anew(daemon: Daemon, alice: User) -> None:
    desk = make_machine(alice, "desk")
    daemon.fail(daemon.open())
    configure(daemon.room, alice, machine="desk")
    found = placement(daemon.room)
    assert (found.machine, found.generation, found.exhausted_generation, found.current_run) == (desk, 2, None, None)
    assert (daemon.agent.status, snapshot(daemon.machine.pk), len(snapshot(desk.pk))) == (AgentStatus.OFFLINE, [], 1)


def test_what_the_new_machine_does_not_offer_keeps_it_where_it_is(daemon: Daemon, alice: User) -> None:
    Placement.objects.update(directory="/home/alice/src/calc")
    make_machine(alice, "desk", allow_dirs=["/srv"])
    refuse(daemon.room, alice, Invalid, "directory '/home/alice/src/calc': desk allows /srv", machine="desk")
    make_machine(alice, "shelf", harnesses=[])
    refuse(daemon.room, alice, Invalid, "harness 'demo': shelf offers no harness", machine="shelf")
    configure(daemon.room, alice, machine="desk", directory="/srv/calc")
    assert placement(daemon.room).machine.name == "desk"


def test_while_its_machine_is_away_it_moves_only_by_force(daemon: Daemon, alice: User) -> None:
    make_machine(alice, "desk")
    send_message(daemon.room.pk, text="do it", author=alice)
    claim = working(daemon)
    run = daemon.run
    secret = Token.objects.issue(kind="agent", name="run", room=daemon.room, role="builder", subject_id=run.pk)[1]
    Machine.objects.filter(pk=daemon.machine.pk).update(status=MachineStatus.DISCONNECTED, connection="")
    refuse(daemon.room, alice, WrongState, "laptop-7 is away: --force gives that run up", machine="desk")

    configure(daemon.room, alice, machine="desk", force=True)

    lost = Run.objects.get(pk=run.pk)
    assert (lost.state, lost.verdict, lost.error_message) == ("failed", "lost", "given up by alice: its machine laptop-7 is away")
    with pytest.raises(NotSignedIn):
        resolve_token(secret)
    with pytest.raises((Superseded, ChatroomError)):
        Program(run).join(joined=True)
    assert (Claim.objects.get(pk=claim.pk).is_open, Task.objects.get().status) == (False, TaskStatus.PENDING)
    assert daemon.agent.status == AgentStatus.RESTARTING  # desk is there, and work waits


def test_a_run_that_was_given_up_is_ended_when_its_machine_returns(daemon: Daemon, alice: User) -> None:
    make_machine(alice, "desk")
    run = daemon.start()
    Machine.objects.filter(pk=daemon.machine.pk).update(status=MachineStatus.DISCONNECTED, connection="")
    configure(daemon.room, alice, machine="desk", force=True)
    before = daemon.agent.status
    living = {"run": run.pk, "state": "running", "pid": 4711}
    connect_machine(daemon.machine.pk, Introduction.read({"instance": "instance-1", "runs": [living]}, connection="socket-2"))
    finish_replay(daemon.machine.pk, living=[run.pk])
    assert snapshot(daemon.machine.pk) == []
    assert daemon.exit(run, 0, asked="removed", do="none") is not None
    assert (daemon.agent.status, Run.objects.get(pk=run.pk).verdict) == (before, "lost")


def test_moving_cancels_what_was_in_flight(daemon: Daemon, alice: User) -> None:
    start_agent(daemon.room.pk, role="builder", actor="alice")
    configure(daemon.room, alice, kind="custom")
    assert (daemon.command.state, daemon.command.outcome, daemon.agent.status) == (
        "cancelled",
        "configured anew by alice",
        AgentStatus.OFFLINE,
    )


def test_a_custom_agents_claim_ends_when_it_becomes_remote(room: Room, alice: User, machine: Machine) -> None:
    send_message(room.pk, text="do it", author=alice)
    joined, hello = join(room, alice)
    offer = offer_next(joined.agent_id, room_id=room.pk, incarnation=hello.incarnation, connection=hello.connection)
    assert offer is not None
    configure(room, alice, kind="remote", machine="laptop-7", harness="demo")
    with pytest.raises(ChatroomError, match="your claim of attempt 1 ended"):
        start_task(room.pk, offer.claim, principal=principal_of(alice))


def test_the_placement_of_another_role_is_not_touched(daemon: Daemon, alice: User) -> None:
    other = make_placement(daemon.machine, Agent.objects.get(room=daemon.room, role="reviewer"))
    configure(daemon.room, alice, kind="custom")
    assert Placement.objects.get() == other
