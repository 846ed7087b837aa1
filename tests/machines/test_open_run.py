"""A run is opened by the server: only when it is wanted, and once for each wish."""

from typing import Any

import pytest
from django.contrib.auth.models import User

from agents.models import AgentStatus
from chatroom.errors import Invalid
from chatroom.models import Token
from chatroom.principals import resolve_token
from machines.models import Desired, Placement, Run
from machines.services.desire import restart_agent, start_agent, stop_agent
from machines.services.opening import Busy, NotWanted, look_at_join
from tests.factories import make_machine

from .playing import Daemon, Program, triggers

pytestmark = pytest.mark.django_db


@pytest.fixture
def started(daemon: Daemon) -> Daemon:
    start_agent(daemon.room.pk, role="builder", actor="alice")
    return daemon


def test_a_grant_has_all_that_its_process_needs(started: Daemon) -> None:
    Placement.objects.update(model="big", directory="/home/alice/src/calc")
    grant = started.ask(attempt=2)
    run, secret = started.run, grant.pop("token")
    assert grant.pop("prompt").startswith("You are builder in the Chatroom room")
    assert grant == {
        "run": run.pk,
        "agent": started.agent.pk,
        "generation": 1,
        "attempt": 2,
        "room": started.room.slug,
        "role": "builder",
        "mode": "loop",
        "harness": "demo",
        "model": "big",
        "directory": "/home/alice/src/calc",
    }
    principal = resolve_token(secret)
    assert (principal.kind, principal.room_id, principal.role, principal.subject_id) == ("agent", started.room.pk, "builder", run.pk)
    assert (run.state, started.placement.current_run_id) == ("validating", run.pk)


def test_the_same_wish_again_is_the_same_run_with_a_fresh_token(started: Daemon) -> None:
    first, second = started.ask(request="wish"), started.ask(request="wish")
    assert first["run"] == second["run"]
    assert first["token"] != second["token"]
    assert Token.objects.filter(kind="agent").count() == 1
    assert resolve_token(second["token"]).subject_id == first["run"]
    assert triggers(started.run) == ["create"]


def test_a_wish_whose_run_has_ended_is_not_granted_again(started: Daemon) -> None:
    started.exit(started.open(request="wish"))
    with pytest.raises(NotWanted, match="has ended already: ask again with a new one"):
        started.ask(request="wish")


def test_another_run_is_refused_while_one_has_not_ended(started: Daemon) -> None:
    run = started.open()
    with pytest.raises(Busy, match=f"run {run.pk} of builder has not ended yet") as refusal:
        started.ask()
    assert refusal.value.code == "busy"
    assert Run.objects.count() == 1


def test_nothing_is_opened_before_there_is_work(daemon: Daemon) -> None:
    with pytest.raises(NotWanted, match="builder is not wanted until there is work"):
        daemon.ask()
    assert not Run.objects.exists()


def test_a_stop_that_came_meanwhile_wins(started: Daemon) -> None:
    stop_agent(started.room.pk, role="builder", actor="bob")
    with pytest.raises(NotWanted, match="builder was stopped by bob"):
        started.ask(generation=1)
    assert not Run.objects.exists()


def test_an_outdated_generation_is_refused(started: Daemon) -> None:
    restart_agent(started.room.pk, role="builder", actor="alice")
    with pytest.raises(NotWanted, match="generation 1 of builder is outdated: 2 is wanted"):
        started.ask(generation=1)
    assert started.ask(generation=2)["generation"] == 2


@pytest.mark.scenario(97)
def test_an_exhausted_generation_is_refused_until_a_person_starts_it(started: Daemon) -> None:
    started.fail(started.open())
    with pytest.raises(NotWanted, match="unrecoverable until a person restarts it"):
        started.ask()
    start_agent(started.room.pk, role="builder", actor="alice")
    assert started.open().generation == 2


@pytest.mark.scenario(78)
def test_another_machine_cannot_open_it(started: Daemon, bob: User) -> None:
    other = Daemon(make_machine(bob, "other"), started.room)
    with pytest.raises(NotWanted, match="does not live on other"):
        other.ask()
    assert not Run.objects.exists()


def test_a_wish_without_a_name_is_refused(started: Daemon) -> None:
    with pytest.raises(Invalid, match="without a request"):
        started.ask(request="")


def test_a_crash_restart_takes_the_agent_up_where_it_is(started: Daemon) -> None:
    started.exit(started.start(), do="none")
    assert started.agent.status == AgentStatus.DEAD
    started.open()
    assert (started.agent.status, started.placement.generation, started.placement.desired_state) == ("restarting", 1, Desired.RUNNING)
    assert triggers(started.agent)[-1] == "restart_initiated"


def test_whether_it_joined_can_be_asked(started: Daemon, bob: User) -> None:
    def look(machine: Any = None) -> tuple[bool, bool]:
        found = look_at_join(machine or started.machine, started.run.pk)
        return found["joined"], found["current"]

    run = started.launch(started.open())
    assert look() == (False, True)
    Program(run).join()
    assert look() == (True, True)
    assert look(make_machine(bob, "other")) == (False, False)
    started.exit(run)
    started.open()
    assert look_at_join(started.machine, run.pk) == {"run": run.pk, "joined": True, "current": False}
