"""What the sweep looks at for machines is what is due, however many agents, runs and commands there are and were."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.db import connection
from django.utils.timezone import now

from agents.models import Agent
from chatroom.models import Event, Pulse, Task
from machines import sweep
from machines.models import Command, Run
from tests.agents.plans import explain, recorded

from .playing import Daemon

pytestmark = pytest.mark.django_db

MANY = 2_000
INDEX_OF: dict[Callable[[], int], set[str]] = {
    sweep.wake_agents: {"task_look", "task_pending"},
    sweep.expire_commands: {"command_in_flight", "command_one_start_in_flight"},
}


def be_many(daemon: Daemon) -> None:
    """A long past of one agent; and a pending task of which people know that its stopped agent can't take it."""
    ended, room, agent = now(), daemon.room, daemon.agent
    message = room.messages.create(sender="alice", text="do it")
    past = {"room": room, "message": message, "chain": message, "assigned_role": "builder", "title": "do it", "attempt": 1}
    Task.objects.bulk_create([Task(status="completed", **past) for _ in range(MANY)])
    runs = [
        Run(agent=agent, machine=daemon.machine, generation=1, request=str(number), state="failed", ended_at=ended)
        for number in range(MANY)
    ]
    Run.objects.bulk_create(runs)
    command = {"agent": agent, "machine": daemon.machine, "act": "start_agent", "actor": "alice", "ended_at": ended}
    Command.objects.bulk_create([Command(state="completed", **command) for _ in range(MANY)])
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")


def test_the_sweep_finds_what_is_due_by_an_index_and_looks_at_nothing_else(daemon: Daemon, pulse: Pulse) -> None:
    be_many(daemon)
    Pulse.objects.update(beat_at=now(), quiet_until=now() - timedelta(seconds=1))
    events = Event.objects.count()
    for step, indexes in INDEX_OF.items():
        with recorded() as statements:
            assert step() == 0
        looks = [explain(statement) for statement in statements if "chatroom_pulse" not in statement.sql]
        assert looks
        for look in looks:
            assert indexes & look.indexes, f"{step.__name__}: {look}"
            assert not {"chatroom_task", "machines_run", "machines_command"} & set(look.scans), f"{step.__name__}: {look}"
            assert look.rows < 10, f"{step.__name__}: {look}"
    assert (Event.objects.count(), Agent.objects.count()) == (events, 2)
