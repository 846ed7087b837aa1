"""Each report is applied once; skipped states are walked; what can't be applied is kept and answered."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import AgentStatus, Claim
from agents.sweep import expire_leases
from chatroom.models import Event, Pulse, Task
from chatroom.services.messages import send_message
from machines.models import Act, Command, Machine, MachineStatus, Run, RunState
from machines.services.connection import resume_dead, vouch
from machines.services.desire import restart_agent, stop_agent
from machines.services.reports import receive_report
from machines.services.runs import fail_lost_run
from tests.factories import make_machine

from .playing import Daemon, Program, newest_event, told, triggers, working

pytestmark = pytest.mark.django_db

STEPS = ["run.validated", "run.preparing", "run.launched"]


# --- steps


@pytest.mark.parametrize(("last", "state", "walked"), [("run.preparing", "preparing", 2), ("run.launched", "running", 3)])
def test_skipped_states_are_walked_with_one_event_each(daemon: Daemon, last: str, state: str, walked: int) -> None:
    run = daemon.open()
    assert daemon.report(last, run, pid=4711) is None
    assert daemon.run.state == state
    assert triggers(run) == ["create", "validated", "prepare", "launch"][: walked + 1]


@pytest.mark.parametrize("name", [*STEPS, "run.aborting"])
def test_a_repeated_report_is_ok_and_writes_nothing(daemon: Daemon, name: str) -> None:
    run = daemon.launch(daemon.open())
    daemon.report("run.aborting", run, asked="stop")
    before, seen = Run.objects.values().get(), newest_event()
    assert daemon.report(name, run, pid=4711, asked="abort") is None
    daemon.exit(run, 0, asked="stop", do="none")
    seen, before = newest_event(), Run.objects.values().get()
    assert daemon.report(name, run, pid=4711, asked="abort") is None
    assert (Run.objects.values().get(), newest_event()) == (before, seen)


def test_a_late_step_never_leads_back(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    for name in STEPS[:2]:
        assert daemon.report(name, run) is None
    assert daemon.run.state == RunState.RUNNING
    assert triggers(run) == ["create", "validated", "prepare", "launch"]


def test_the_pid_of_a_program_that_joined_before_the_report_of_its_launch_is_kept(daemon: Daemon) -> None:
    run = daemon.open()
    Program(run).join()
    assert daemon.report("run.preparing", run) is None, "on its way when the program joined; it names no process yet"
    assert (daemon.run.state, daemon.run.pid) == (RunState.RUNNING, None)
    for _ in range(2):
        assert daemon.report("run.launched", run, pid=4711) is None
    assert daemon.run.pid == 4711
    assert triggers(run).count("tell_pid") == 1


def test_the_exit_of_a_run_whose_steps_were_lost_walks_them_all(daemon: Daemon) -> None:
    run = daemon.open()
    daemon.exit(run, do="none")
    assert triggers(run) == ["create", "validated", "prepare", "launch", "fail"]
    daemon.report("run.aborting", daemon.open(), asked="stop")
    daemon.exit(daemon.run, 0, asked="stop", do="none")
    assert triggers(daemon.run) == ["create", "abort", "aborted"]


# --- the first final state stands


@pytest.mark.scenario(91)
def test_an_exit_keeps_code_signal_and_last_lines(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    daemon.exit(run, None, signal=9, message="ended by signal 9", lines=[f"line {number}" for number in range(30)])
    found = daemon.run
    assert (found.state, found.exit_code, found.signal, found.verdict, found.failure) == (RunState.FAILED, None, 9, "faulty", "crash")
    assert (found.error_message, found.last_lines[0], found.last_lines[-1]) == ("ended by signal 9", "line 10", "line 29")


def test_the_same_exit_again_is_ok_and_another_is_rejected_and_kept(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    daemon.exit(run, 3)
    before, seen = Run.objects.values().get(), newest_event()
    assert daemon.exit(run, 3) is None
    assert newest_event() == seen
    assert daemon.exit(run, 4, key="late") == f"run {run.pk} is failed already: ended with exit code 3"
    assert daemon.exit(run, 4, key="late") is not None
    assert Run.objects.values().get() == before
    event = Event.objects.get(pk__gt=seen)
    assert (event.trigger, event.room_id, event.role, event.data) == (
        "reject_report",
        daemon.room.pk,
        "builder",
        {"key": "late", "report": "run.exited"},
    )


def test_nothing_is_said_about_a_run_that_was_given_up_as_lost(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    fail_lost_run(run.pk, message="lost with its machine")
    for rejected in (daemon.report("run.launched", run), daemon.report("run.aborting", run, asked="stop"), daemon.exit(run, 0)):
        assert rejected == f"run {run.pk} is failed already: lost with its machine"
    assert daemon.run.verdict == "lost"


def test_a_report_about_an_old_run_never_touches_the_agent(daemon: Daemon) -> None:
    old = daemon.start()
    daemon.exit(old)
    daemon.start()
    seen = newest_event()
    assert daemon.exit(old, 7, do="exhausted") is not None
    assert daemon.report("run.frozen", old) is None
    assert (daemon.agent.status, daemon.placement.exhausted_generation) == (AgentStatus.READY, None)
    assert not Event.objects.filter(pk__gt=seen, subject="agent").exists()


def test_a_decision_for_an_outdated_generation_means_nothing(daemon: Daemon) -> None:
    run = daemon.start()
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    daemon.exit(run, 3, do="exhausted")
    assert (daemon.agent.status, daemon.placement.exhausted_generation) == (AgentStatus.RESTARTING, None)
    assert (daemon.command.state, told(daemon.room)) == ("pending", [])


# --- what can't be applied


def test_a_report_about_somebody_elses_run_is_rejected(daemon: Daemon, bob: User) -> None:
    run, other = daemon.open(), Daemon(make_machine(bob, "other"), daemon.room)
    assert other.exit(run) == f"run {run.pk} is not one of other"
    assert other.stopped() == f"agent {daemon.agent.pk} does not live on other"
    assert daemon.run.state == RunState.VALIDATING
    assert Event.objects.filter(subject="machine", subject_id=other.machine.pk, trigger="reject_report").count() == 2


@pytest.mark.parametrize(
    ("report", "why"),
    [
        ({"report": "run.danced"}, "expected one of run.validated"),
        ({"report": None}, "expected one of"),
        ({"report": "run.exited", "run": "x"}, "run x is not one of laptop-7"),
        ({"report": "run.exited", "run": 10**30}, "is not one of laptop-7"),
        ({"report": "agent.stopped", "agent": None}, "agent does not live on laptop-7"),
        ({"report": "command.failed", "command": 999}, "command 999 is not one of laptop-7"),
    ],
)
def test_a_report_that_makes_no_sense_is_answered_and_kept(daemon: Daemon, report: dict[str, Any], why: str) -> None:
    answer = receive_report(daemon.machine, {"key": "odd", **report})
    assert answer is not None
    assert why in answer.replace("  ", " ")
    event = Event.objects.get(trigger="reject_report")
    assert (event.subject, event.subject_id, event.actor, event.reason) == ("machine", daemon.machine.pk, "laptop-7", answer)


@pytest.mark.parametrize("fields", [{"code": "x"}, {"decision": ["x"]}, {"decision": {"do": "restart", "in": "soon"}}, {"lines": 5}])
def test_a_malformed_exit_is_rejected_and_changes_nothing(daemon: Daemon, fields: dict[str, Any]) -> None:
    run = daemon.start()
    assert "can't be understood" in (
        daemon.report("run.exited", run, message="odd", **{"code": 3, "decision": {"do": "none"}, **fields}) or ""
    )
    assert (daemon.run.state, daemon.agent.status) == (RunState.RUNNING, AgentStatus.READY)


def test_a_programs_last_words_are_stored_whatever_is_in_them(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    odd = "a\0b\x1b[31mred\x1b[0m\ud800\x07"
    assert daemon.exit(run, 1, message=odd, lines=[odd], failure="cr\0ash", do="exhausted") is None
    assert (daemon.run.error_message, daemon.run.last_lines, daemon.run.failure) == ("abred?", ["abred?"], "crash")


# --- commands


def test_a_daemon_may_end_a_command_itself_with_its_words(daemon: Daemon) -> None:
    stop_agent(daemon.room.pk, role="builder", actor="alice")
    command = Command.objects.create(machine=daemon.machine, agent=daemon.agent, act=Act.ABORT, actor="alice")
    assert daemon.report("command.completed", command=command.pk, message="run 41 had already ended") is None
    assert daemon.report("command.failed", command=command.pk, message="too late") is None
    assert (daemon.command.state, daemon.command.outcome) == ("completed", "run 41 had already ended")
    assert triggers(command) == ["complete"]


# --- agent.stopped


def test_a_daemon_without_a_process_of_an_opened_run_settles_it(daemon: Daemon) -> None:
    """The grant was lost on the way: the daemon never knew of the run."""
    run = daemon.open()
    stop_agent(daemon.room.pk, role="builder", actor="alice")
    assert daemon.command.state == "pending"
    daemon.stopped()
    assert (Run.objects.get(pk=run.pk).state, daemon.agent.status, daemon.command.state) == ("failed", AgentStatus.OFFLINE, "completed")


def test_agents_that_were_stopped_with_their_daemon_are_offline_and_stay_wanted(daemon: Daemon) -> None:
    daemon.exit(daemon.start(), 0, asked="daemon_stop", do="none")
    daemon.stopped()
    assert (daemon.agent.status, daemon.placement.desired_state) == (AgentStatus.OFFLINE, "running")
    assert daemon.placement.generation == 1


# --- SIGSTOP


def freeze(daemon: Daemon, pulse: Pulse) -> Run:
    run = daemon.run
    daemon.report("run.stopped", run, key="stopped-1", seconds=5)
    daemon.report("run.frozen", run, key="frozen-1", seconds=10)
    expire_leases()
    return run


def lease_of(daemon: Daemon) -> timedelta:
    assert daemon.agent.lease_expires_at
    return daemon.agent.lease_expires_at - now()


@pytest.mark.scenario(93)
def test_a_frozen_agent_is_dead_at_the_next_sweep_and_not_restarted_and_people_are_told_once(
    daemon: Daemon, alice: User, pulse: Pulse
) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    run = freeze(daemon, pulse)
    assert (daemon.agent.status, Task.objects.get().status) == (AgentStatus.DEAD, "pending")
    assert [trigger for trigger in triggers(run) if trigger in ("stopped", "frozen")] == ["stopped", "frozen"]
    assert told(daemon.room) == ["builder on laptop-7: its process is frozen (SIGSTOP): SIGCONT, or a restart, helps."]
    assert daemon.placement.generation == 1


@pytest.mark.scenario(93)
def test_a_frozen_process_that_goes_on_gets_its_claim_back(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    claim = working(daemon)
    run = freeze(daemon, pulse)
    daemon.report("run.continued", run, key="continued-1")
    resume_dead(daemon.machine, vouch(daemon.machine.pk, runs=[run.pk]).dead)
    assert (daemon.agent.status, daemon.run.is_frozen, daemon.run.stopped_at) == (AgentStatus.WORKING, False, None)
    assert Claim.objects.get(pk=claim.pk).is_open


def test_a_replay_of_a_stop_that_is_over_stops_nothing(daemon: Daemon, pulse: Pulse) -> None:
    daemon.start()
    run = freeze(daemon, pulse)
    daemon.report("run.continued", run, key="continued-1")
    seen = newest_event()
    for name, key in [("run.stopped", "stopped-1"), ("run.frozen", "frozen-1"), ("run.continued", "continued-1")]:
        assert daemon.report(name, run, key=key) is None
    assert (newest_event(), daemon.run.is_frozen) == (seen, False)


@pytest.mark.scenario(93)
def test_of_an_agent_that_was_heard_of_since_an_old_stop_is_no_news(daemon: Daemon, pulse: Pulse) -> None:
    """The machine was cut off: its reports come late, after its agent's own word."""
    daemon.start()
    daemon.report("run.frozen", daemon.run, key="frozen-1", seconds=10, age=60)
    expire_leases()
    assert (daemon.agent.status, told(daemon.room)) == (AgentStatus.READY, [])


@pytest.mark.scenario(93)
def test_what_is_said_again_of_a_frozen_process_counts_whatever_was_heard_since_the_first_time(daemon: Daemon, pulse: Pulse) -> None:
    """Its main program is stopped, its waiting command is not: that one has come back before the old report."""
    run = daemon.start()
    for key, age in [("frozen-1", 60), ("frozen-2", 0), ("frozen-3", 0)]:
        daemon.report("run.frozen", run, key=key, seconds=10, age=age)
    expire_leases()
    assert (daemon.agent.status, len(told(daemon.room)), triggers(run).count("frozen")) == (AgentStatus.DEAD, 1, 1)


@pytest.mark.scenario(93)
def test_a_process_that_goes_on_before_the_sweep_has_looked_was_never_dead(daemon: Daemon, pulse: Pulse) -> None:
    run = daemon.start()
    daemon.report("run.frozen", run, key="frozen-1", seconds=10)
    assert lease_of(daemon) < timedelta(0)
    daemon.report("run.continued", run, key="continued-1")
    expire_leases()
    assert daemon.agent.status == AgentStatus.READY
    assert timedelta(0) < lease_of(daemon) <= timedelta(seconds=settings.HEARTBEAT_TTL)


def test_a_person_restarts_a_frozen_agent(daemon: Daemon, pulse: Pulse) -> None:
    daemon.start()
    run = freeze(daemon, pulse)
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    daemon.exit(run, None, signal=9, asked="restart")
    assert (daemon.agent.status, daemon.open().generation) == (AgentStatus.RESTARTING, 2)


def test_a_frozen_process_that_was_killed_hinders_nothing_any_more(daemon: Daemon, alice: User, pulse: Pulse) -> None:
    daemon.start()
    run = freeze(daemon, pulse)
    daemon.exit(run, None, signal=9, do="none")
    send_message(daemon.room.pk, text="do it", author=alice)
    assert (daemon.agent.status, daemon.placement.generation) == (AgentStatus.RESTARTING, 2)


# --- lost


def test_a_lost_run_frees_its_task_without_counting_a_crash(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    Machine.objects.update(status=MachineStatus.DISCONNECTED, last_seen_at=now())
    fail_lost_run(daemon.run.pk, message="lost with its machine")
    assert (Task.objects.get().status, Task.objects.get().crashes) == ("pending", 0)
    assert daemon.agent.status == AgentStatus.DEAD
