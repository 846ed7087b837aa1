"""What only a timer can notice of machines, commands and starts; and that the quiet time holds it back."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from chatroom.models import Pulse
from machines import sweep
from machines.models import Act, Command, Desired, Machine, MachineStatus, Placement, RunLog
from machines.services.desire import start_agent, stop_agent
from machines.services.pings import ask_machine
from machines.sweep import disconnect_silent_machines, expire_commands, expire_restarts, forget_old_logs
from tests.factories import make_run

from .playing import Daemon, Program, newest_event, triggers

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("pulse")]


def ago(seconds: float) -> Any:
    return now() - timedelta(seconds=seconds)


def be_quiet() -> None:
    Pulse.objects.update(quiet_until=now() + timedelta(seconds=60))


def start(daemon: Daemon, *, since: float) -> Command:
    command = start_agent(daemon.room.pk, role="builder", actor="alice")
    Agent.objects.filter(pk=daemon.agent.pk).update(status_since=ago(since))
    Placement.objects.update(restart_noted_at=ago(since))
    return command


# --- machines


def test_a_machine_whose_web_process_is_gone_is_disconnected_after_its_ttl(machine: Machine, settings: LazySettings) -> None:
    Machine.objects.update(last_seen_at=ago(119))
    assert disconnect_silent_machines() == 0
    Machine.objects.update(last_seen_at=ago(121))
    assert [disconnect_silent_machines() for _ in range(2)] == [1, 0]
    assert Machine.objects.get().status == MachineStatus.DISCONNECTED
    assert triggers(machine) == ["disconnect"]


# --- starts


def test_a_start_without_any_word_ends_dead_with_the_reason(daemon: Daemon) -> None:
    start(daemon, since=91)
    assert [expire_restarts() for _ in range(2)] == [1, 0]
    assert (daemon.agent.status, daemon.agent.error_message) == (AgentStatus.DEAD, "its start was never confirmed")
    assert (daemon.command.state, daemon.command.outcome) == ("failed", "its start was never confirmed")


def test_a_start_of_which_nothing_was_ever_noted_ends_too(daemon: Daemon) -> None:
    start(daemon, since=91)
    Placement.objects.update(restart_noted_at=None)
    assert expire_restarts() == 1


@pytest.mark.parametrize(
    "word", [{"restart_noted_at": timedelta(seconds=-89)}, {"restart_noted_at": timedelta(seconds=30), "restart_at": timedelta(seconds=30)}]
)
def test_the_time_counts_from_the_latest_word_about_it(daemon: Daemon, word: dict[str, timedelta]) -> None:
    start(daemon, since=600)
    Placement.objects.update(**{name: now() + delta for name, delta in word.items()})
    assert expire_restarts() == 0
    assert daemon.agent.status == AgentStatus.RESTARTING


def test_a_report_about_its_run_is_a_word(daemon: Daemon) -> None:
    start(daemon, since=600)
    run = daemon.open()
    Placement.objects.update(restart_noted_at=ago(600))
    daemon.report("run.validated", run)
    assert expire_restarts() == 0
    Placement.objects.update(restart_noted_at=ago(600))
    daemon.report("run.validated", run)
    assert expire_restarts() == 1


def test_the_wait_that_its_daemon_announced_counts_from_its_end(daemon: Daemon) -> None:
    daemon.exit(daemon.start())
    Agent.objects.filter(pk=daemon.agent.pk).update(status_since=ago(600))
    assert expire_restarts() == 0


def test_a_start_whose_machine_is_away_stays_in_flight_and_happens_when_it_is_back(daemon: Daemon) -> None:
    start(daemon, since=91)
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    assert expire_restarts() == 1
    assert (daemon.agent.status, daemon.agent.error_message, daemon.command.state) == ("dead", "its machine laptop-7 is away", "pending")
    Machine.objects.update(status=MachineStatus.CONNECTED, connection="socket-2")
    Program(daemon.launch(daemon.open())).join()
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.READY, "completed")


# --- commands


def test_a_ping_without_an_answer_expires_after_ten_seconds(machine: Machine) -> None:
    command = ask_machine(machine, Act.PING, actor="alice")
    assert expire_commands() == 0
    Command.objects.update(created_at=ago(11))
    assert [expire_commands() for _ in range(2)] == [1, 0]
    found = Command.objects.get(pk=command.pk)
    assert (found.state, found.outcome, triggers(command)) == ("expired", "no answer within 10 s", ["create", "expire"])


@pytest.mark.parametrize("sent", [False, True])
def test_a_start_that_waited_for_its_machine_for_an_hour_asks_the_person_again(daemon: Daemon, sent: bool) -> None:
    start(daemon, since=3601)
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    expire_restarts()
    Command.objects.update(created_at=ago(3601), state="dispatched" if sent else "pending")
    assert [expire_commands() for _ in range(2)] == [1, 0]
    assert (daemon.command.state, daemon.placement.desired_state, daemon.placement.generation) == ("expired", Desired.ON_DEMAND, 2)
    assert daemon.command.outcome == "laptop-7 was away for an hour: start it again if it is still wanted"


def test_a_start_that_its_daemon_is_still_at_does_not_expire(daemon: Daemon) -> None:
    start(daemon, since=0)
    Command.objects.update(created_at=ago(3601), state="dispatched")
    assert (expire_commands(), daemon.command.state) == (0, "dispatched")


@pytest.mark.scenario(55)
def test_a_stop_never_expires(daemon: Daemon) -> None:
    daemon.start()
    stop_agent(daemon.room.pk, role="builder", actor="alice")
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    Command.objects.filter(state="pending").update(created_at=ago(86400))
    assert (expire_commands(), daemon.command.state) == (0, "pending")


# --- all of them


def silent_machine(daemon: Daemon) -> None:
    Machine.objects.update(last_seen_at=ago(600))


def old_start(daemon: Daemon) -> None:
    start(daemon, since=600)


def ancient_start(daemon: Daemon) -> None:
    start(daemon, since=0)
    Command.objects.update(created_at=ago(7200))


@pytest.mark.parametrize(
    ("step", "make_due"), [(disconnect_silent_machines, silent_machine), (expire_restarts, old_start), (expire_commands, ancient_start)]
)
def test_the_quiet_time_holds_it_back(daemon: Daemon, step: Callable[[], int], make_due: Callable[[Daemon], None]) -> None:
    make_due(daemon)
    be_quiet()
    seen = newest_event()
    assert step() == 0
    assert newest_event() == seen
    Pulse.objects.update(quiet_until=now())
    assert step() == 1


def test_logs_are_forgotten_once_their_time_is_over(daemon: Daemon) -> None:
    run = daemon.start()
    daemon.exit(run)
    RunLog.objects.create(run=run, text="x")
    assert forget_old_logs() == 0
    type(run).objects.update(ended_at=ago(31 * 86400))
    assert forget_old_logs() == 1


def test_each_sweep_looks_at_some_logs_and_after_a_while_at_all(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "BATCH", 2)
    monkeypatch.setattr(sweep, "LOGS", sweep.Walk())
    placement = Placement.objects.get()
    runs = [make_run(placement, state="failed", joined=False, ended_at=ago(40 * 86400 if number == 4 else 60)) for number in range(5)]
    RunLog.objects.bulk_create([RunLog(run=run, text="x") for run in runs])
    assert [forget_old_logs() for _ in range(4)] == [0, 0, 1, 0]
    assert RunLog.objects.count() == 4
