"""Presses, messages, reports and sweeps at the same instant: one start, one run, one end, whichever database decides."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from agents.sweep import expire_leases
from chatroom.models import Event, Notice, Pulse, Task
from chatroom.services.messages import send_message
from machines.models import Act, Command, Machine, Placement, Run
from machines.services.connection import resume_dead, vouch
from machines.services.desire import restart_agent, start_agent, stop_agent, wake_up
from machines.services.opening import open_run
from machines.services.reports import receive_report
from machines.sweep import wake_agents
from tests.agents.racers import NUMBER, Racers, act, racers

from .playing import Daemon, Program, triggers

pytestmark = pytest.mark.django_db(transaction=True)

ROUNDS = 5


@pytest.fixture(scope="module")
def field(django_db_setup: None) -> Iterator[Racers]:
    with racers("threads") as started:
        yield started


def send(room_id: int, user_id: int) -> int:
    return send_message(room_id, text="do it", author=User.objects.get(pk=user_id)).task.pk


def press(room_id: int, name: str) -> int:
    return {"start": start_agent, "stop": stop_agent, "restart": restart_agent}[name](room_id, role="builder", actor="alice").pk


def wake(room_id: int) -> bool:
    return wake_up(room_id, role="builder") is not None


def command_without_any_lock(machine_id: int, agent_id: int) -> str:
    """What only the constraint decides."""
    try:
        return f"made {Command.objects.create(machine_id=machine_id, agent_id=agent_id, act=Act.START, actor='alice').pk}"
    except IntegrityError:
        return "IntegrityError"


def ask(machine_id: int, agent_id: int, request: str) -> int:
    machine = Machine.objects.get(pk=machine_id)
    grant = open_run(machine, agent_id=agent_id, generation=1, attempt=1, request=request, server_url="http://testserver")
    return int(grant["run"])


def report(machine_id: int, run_id: int, code: int) -> str:
    decision = {"do": "restart", "in": 3.0, "attempt": 2, "attempts": 3, "verdict": "faulty"}
    told = {
        "key": f"exit-{code}",
        "report": "run.exited",
        "run": run_id,
        "code": code,
        "signal": None,
        "failure": "crash",
        "decision": decision,
    }
    return "rejected" if receive_report(Machine.objects.get(pk=machine_id), told) else "ok"


def beat(machine_id: int, run_id: int) -> None:
    resume_dead(Machine.objects.get(pk=machine_id), vouch(machine_id, runs=[run_id]).dead)


def starts() -> int:
    return Command.objects.in_flight().starts().count()


@pytest.mark.scenario(50)
def test_five_people_who_send_at_the_same_instant_start_one_process(field: Racers, daemon: Daemon, alice: User, pulse: Pulse) -> None:
    for number in range(1, ROUNDS + 1):
        room_id = daemon.room.pk
        field.race(act(send, (room_id, alice.pk)), act(press, (room_id, "start")), act(wake, (room_id,)), act(wake_agents, ()))
        assert (starts(), daemon.placement.generation, daemon.agent.status) == (1, number, AgentStatus.RESTARTING)
        assert Event.objects.filter(subject="agent", trigger="restart_initiated").count() == number
        assert not Notice.objects.exists()
        # Back to where it was, with the work still waiting.
        Agent.objects.filter(pk=daemon.agent.pk).update(status="offline")
        Command.objects.update(state="completed")
    assert Task.objects.count() == NUMBER * ROUNDS
    assert Task.objects.filter(status="pending").count() == 1


@pytest.mark.scenario(50)
def test_where_only_the_constraint_decides_one_start_is_in_flight(field: Racers, daemon: Daemon) -> None:
    [answers] = field.race(act(command_without_any_lock, (daemon.machine.pk, daemon.agent.pk)))
    assert sorted(answers)[: NUMBER - 1] == ["IntegrityError"] * (NUMBER - 1)
    assert starts() == 1


def test_of_presses_that_contradict_each_other_the_last_generation_wins(field: Racers, daemon: Daemon) -> None:
    room_id = daemon.room.pk
    for _ in range(ROUNDS):
        field.race(act(press, *[(room_id, name) for name in ("start", "stop", "restart", "stop")]))
        placement, agent = daemon.placement, daemon.agent
        in_flight = list(Command.objects.in_flight())
        assert len(in_flight) == (placement.desired_state == "running")
        assert all(command.generation == placement.generation for command in in_flight)
        assert agent.status == ("offline" if placement.is_stopped else "restarting")
        assert agent.accepts_work != placement.is_stopped


@pytest.mark.parametrize("wishes", ["the same", "different"])
def test_of_many_wishes_one_run_is_opened(field: Racers, daemon: Daemon, wishes: str) -> None:
    start_agent(daemon.room.pk, role="builder", actor="alice")
    requests = [f"wish-{number if wishes == 'different' else 1}" for number in range(NUMBER)]
    [answers] = field.race(act(ask, *[(daemon.machine.pk, daemon.agent.pk, request) for request in requests]))
    run = Run.objects.get()
    assert sorted(answers, key=str) == ([run.pk] * NUMBER if wishes == "the same" else [run.pk] + ["Busy"] * (NUMBER - 1))
    assert triggers(run) == ["create"]


@pytest.mark.scenario(24)
def test_an_exit_that_is_reported_many_times_is_applied_once(field: Racers, daemon: Daemon, alice: User) -> None:
    send(daemon.room.pk, alice.pk)
    Program(daemon.start()).join(joined=True).take()
    run = daemon.run
    [answers] = field.race(act(report, (daemon.machine.pk, run.pk, 3), (daemon.machine.pk, run.pk, 4)))
    assert sorted(answers) == ["ok"] * (NUMBER // 2) + ["rejected"] * (NUMBER // 2)
    task = Task.objects.get()
    assert (task.status, task.crashes, daemon.agent.status) == ("pending", 1, AgentStatus.RESTARTING)
    assert triggers(run).count("fail") == 1
    assert triggers(run).count("reject_report") == 1


def test_heartbeats_beside_sweeps_leave_a_living_agent_at_work(field: Racers, daemon: Daemon, alice: User, pulse: Pulse) -> None:
    send(daemon.room.pk, alice.pk)
    claim = Program(daemon.start()).join(joined=True).take()
    Machine.objects.update(status="disconnected")  # so that nothing wakes it meanwhile
    for _ in range(ROUNDS):
        Agent.objects.filter(pk=daemon.agent.pk).update(lease_expires_at=now())
        field.race(act(beat, (daemon.machine.pk, daemon.run.pk)), act(expire_leases, ()), act(beat, (daemon.machine.pk, daemon.run.pk)))
        assert (daemon.agent.status, Task.objects.get().status, Task.objects.get().attempt) == ("working", "in_progress", 1)
        claim.refresh_from_db()
        assert claim.is_open
    assert Placement.objects.get().generation == 1
