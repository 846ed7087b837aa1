"""The machines' part of a room's JSON: what runs where, and what nobody can confirm now."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

import chatroom.urls  # noqa: F401  (with the API each app adds its part)
from agents.models import Agent, AgentStatus
from chatroom.models import Room, Task
from chatroom.services.messages import send_message
from chatroom.status import describe_chain, room_status
from machines.models import Machine, MachineStatus
from machines.services.connection import note_absence
from tests.factories import make_agent

from .playing import Daemon

pytestmark = pytest.mark.django_db


def agents(room: Room) -> dict[str, dict[str, Any]]:
    return {agent["role"]: agent for agent in room_status(room)["agents"]}


def test_a_remote_agent_shows_machine_run_and_desired_state_and_a_custom_one_none(daemon: Daemon) -> None:
    run = daemon.start()
    builder, reviewer = agents(daemon.room)["builder"], agents(daemon.room)["reviewer"]
    assert (builder["machine"], builder["desired_state"], builder["harness"]) == ("laptop-7", "running", "demo")
    assert builder["run"] == {"id": run.pk, "state": "running", "pid": 4711}
    assert (reviewer["machine"], reviewer["desired_state"], reviewer["run"]) == (None, None, None)
    [machine] = room_status(daemon.room)["machines"]
    assert (machine["name"], machine["status"]) == ("laptop-7", "connected")


@pytest.mark.scenario(37)
def test_an_absent_machines_live_agents_are_unconfirmed_since_then(daemon: Daemon) -> None:
    daemon.start()
    assert agents(daemon.room)["builder"]["unconfirmed_since"] is None
    note_absence(daemon.machine.pk, connection="socket-1", trigger="disconnect", reason="power")
    builder = agents(daemon.room)["builder"]
    assert (builder["status"], builder["unconfirmed_why"]) == (AgentStatus.READY, "laptop-7 is away")
    assert builder["unconfirmed_since"] == Machine.objects.get().status_since


def test_a_stopped_agent_of_an_absent_machine_is_certainly_offline(daemon: Daemon) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED)
    assert agents(daemon.room)["builder"]["unconfirmed_since"] is None


@pytest.mark.parametrize("role", ["builder", "reviewer"])
def test_an_agent_whose_lease_is_over_is_unconfirmed_until_the_sweep_decides(daemon: Daemon, role: str) -> None:
    over = now() - timedelta(seconds=5)
    make_agent(daemon.room, role, lease_expires_at=over)
    found = agents(daemon.room)[role]
    assert (found["unconfirmed_since"], found["unconfirmed_why"]) == (over, "nobody has heard from it")


@pytest.mark.scenario(99)
def test_a_chain_whose_agent_is_unrecoverable_has_failed_with_the_reason(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    daemon.fail(daemon.open())
    chain = describe_chain(Task.objects.get())
    assert (chain["chain_state"], chain["chain_reason"]) == (
        "failed",
        "builder is unrecoverable: harness demo: program not found (on laptop-7)",
    )
    assert Agent.objects.get(room=daemon.room, role="builder").status == AgentStatus.DEAD_FAILED_REVIVE
