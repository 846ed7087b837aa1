"""What people want of a remote agent: desired state, generation, and the command that says how it went."""

import pytest
from django.contrib.auth.models import User

from agents.models import AgentStatus, Claim, Outcome
from agents.panel import read_rows
from chatroom.errors import NotAllowed, NotFound, RoleNotYours, Superseded, WrongState
from chatroom.models import Event, Task, TaskStatus
from chatroom.services.messages import send_message
from chatroom.services.tasks import retry
from machines.models import Act, Command, CommandState, Desired, Machine, MachineStatus, Placement, Run
from machines.services.desire import abort_run, restart_agent, start_agent, stop_agent

from .playing import Daemon, Program, newest_event, triggers, working

pytestmark = pytest.mark.django_db


def start(daemon: Daemon, actor: str = "alice") -> Command:
    return start_agent(daemon.room.pk, role="builder", actor=actor)


def stop(daemon: Daemon, actor: str = "alice") -> Command:
    return stop_agent(daemon.room.pk, role="builder", actor=actor)


def restart(daemon: Daemon, actor: str = "alice") -> Command:
    return restart_agent(daemon.room.pk, role="builder", actor=actor)


def states(daemon: Daemon) -> list[tuple[str, str]]:
    return list(Command.objects.filter(agent=daemon.agent).order_by("pk").values_list("act", "state"))


def wanted(daemon: Daemon) -> tuple[str, int]:
    return daemon.placement.desired_state, daemon.placement.generation


# --- start


@pytest.mark.scenario(48)
def test_a_start_goes_through_every_state_until_the_agent_is_ready(daemon: Daemon) -> None:
    command = start(daemon)
    assert (daemon.agent.status, wanted(daemon), command.state) == (AgentStatus.RESTARTING, (Desired.RUNNING, 1), CommandState.PENDING)
    run = daemon.launch(daemon.open())
    assert daemon.agent.status == AgentStatus.RESTARTING
    Program(run).join()
    assert (daemon.agent.status, daemon.command.state, daemon.command.outcome) == (AgentStatus.READY, "completed", "builder is running")
    assert triggers(run) == ["create", "validated", "prepare", "launch"]
    assert triggers(daemon.agent) == ["restart_initiated", "join"]
    assert triggers(command) == ["create", "complete"]


def test_each_step_stands_in_the_room_and_says_who_and_where(daemon: Daemon) -> None:
    seen = newest_event()
    start(daemon)
    daemon.launch(daemon.open())
    events = Event.objects.filter(pk__gt=seen).order_by("pk")
    assert {(event.room_id, event.role) for event in events} == {(daemon.room.pk, "builder")}
    assert [(event.name, event.actor) for event in events] == [
        ("command.create", "alice"),
        ("agent.restart_initiated", "alice"),
        ("run.create", "daemon"),
        ("run.validated", "laptop-7"),
        ("run.prepare", "laptop-7"),
        ("run.launch", "laptop-7"),
    ]


@pytest.mark.scenario(50)
def test_a_second_start_joins_the_one_in_flight(daemon: Daemon) -> None:
    first = start(daemon)
    assert start(daemon, "bob") == first
    assert (wanted(daemon), states(daemon)) == ((Desired.RUNNING, 1), [("start_agent", "pending")])


@pytest.mark.scenario(95)
def test_a_start_of_a_running_agent_answers_that_it_runs_already(daemon: Daemon) -> None:
    run = daemon.start()
    command = start(daemon)
    assert (command.state, command.outcome) == (CommandState.COMPLETED, "builder is already running")
    assert (wanted(daemon), daemon.run.pk) == ((Desired.RUNNING, 1), run.pk)


def test_a_start_while_its_daemon_waits_to_restart_it_is_a_new_generation_without_a_past(daemon: Daemon) -> None:
    daemon.exit(daemon.start())
    before = daemon.placement.history_since
    start(daemon)
    assert wanted(daemon) == (Desired.RUNNING, 2)
    assert (daemon.placement.restart_at, daemon.placement.history_since > before) == (None, True)


def test_only_remote_agents_are_started(daemon: Daemon) -> None:
    for act in (start_agent, stop_agent, restart_agent, abort_run):
        with pytest.raises(NotAllowed, match="reviewer is a custom agent"):
            act(daemon.room.pk, role="reviewer", actor="alice")
        with pytest.raises(NotFound):
            act(daemon.room.pk, role="nobody", actor="alice")
    assert not Command.objects.exists()


# --- stop


def test_a_stop_where_nothing_runs_is_done_at_once(daemon: Daemon) -> None:
    command = stop(daemon)
    assert (command.state, command.outcome) == (CommandState.COMPLETED, "no process was running")
    assert (wanted(daemon), daemon.agent.status) == ((Desired.STOPPED, 1), AgentStatus.OFFLINE)


@pytest.mark.scenario(53)
@pytest.mark.scenario(98)
def test_a_stopped_agent_is_offline_only_once_its_process_is_gone(daemon: Daemon) -> None:
    run = daemon.start()
    command = stop(daemon)
    assert (daemon.agent.status, daemon.agent.accepts_work, command.state) == (AgentStatus.READY, False, CommandState.PENDING)
    daemon.report("run.aborting", run, asked="stop", reason="stopped by alice")
    assert daemon.agent.status == AgentStatus.READY
    daemon.exit(run, 0, asked="stop", do="none")
    daemon.stopped(command=command.pk)
    assert (daemon.agent.status, daemon.command.state, daemon.command.outcome) == (AgentStatus.OFFLINE, "completed", "no process is left")
    assert daemon.run.state == "completed"
    assert triggers(daemon.agent)[-1] == "leave"


def test_a_stopped_agent_says_who_stopped_it(daemon: Daemon) -> None:
    run = daemon.start()
    stop(daemon)
    daemon.exit(run, None, signal=15, asked="stop", do="none", message="ended by signal 15")
    [row] = read_rows([daemon.agent])
    assert row.why == "stopped by alice (ended by signal 15)"


def test_a_stopping_agent_is_offered_nothing(daemon: Daemon, alice: User) -> None:
    program = Program(daemon.start())
    stop(daemon)
    send_message(daemon.room.pk, text="do it", author=alice)
    with pytest.raises(AssertionError):
        program.join(joined=True).take()
    assert Task.objects.get().status == TaskStatus.PENDING


def test_a_stop_pressed_twice_is_one_command(daemon: Daemon) -> None:
    daemon.start()
    assert stop(daemon) == stop(daemon, "bob")
    assert wanted(daemon) == (Desired.STOPPED, 2)


def test_a_stopped_agents_task_is_free_again_once_its_process_is_gone(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    claim = working(daemon)
    stop(daemon)
    assert Claim.objects.get(pk=claim.pk).is_open
    daemon.exit(daemon.run, 0, asked="stop", do="none")
    daemon.stopped()
    assert (Task.objects.get().status, Task.objects.get().crashes) == (TaskStatus.PENDING, 0)
    assert daemon.agent.status == AgentStatus.OFFLINE


def test_a_stop_while_it_starts_cancels_the_start_and_ends_the_run(daemon: Daemon) -> None:
    start(daemon)
    run = daemon.open()
    stop(daemon, "bob")
    assert [(row.act, row.state, row.outcome) for row in Command.objects.order_by("pk")] == [
        ("start_agent", "cancelled", "stopped by bob"),
        ("stop_agent", "pending", ""),
    ]
    daemon.exit(run, None, asked="stop", do="none", message="called off before it was started")
    daemon.stopped()
    assert (daemon.agent.status, daemon.run.state) == (AgentStatus.OFFLINE, "completed")


@pytest.mark.scenario(54)
def test_a_stop_during_the_restart_delay_wins(daemon: Daemon) -> None:
    daemon.exit(daemon.start())
    assert (daemon.agent.status, daemon.placement.restart_attempt) == (AgentStatus.RESTARTING, 2)
    stop(daemon)
    assert (daemon.agent.status, daemon.placement.restart_at, daemon.placement.restart_attempt) == (AgentStatus.OFFLINE, None, 0)
    assert daemon.command.outcome == "no process was running"


@pytest.mark.scenario(55)
def test_a_stop_while_its_machine_is_away_waits_for_it(daemon: Daemon) -> None:
    run = daemon.start()
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    stop(daemon)
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.READY, CommandState.PENDING)
    Machine.objects.update(status=MachineStatus.CONNECTED, connection="socket-2")
    daemon.exit(run, 0, asked="stop", do="none")
    daemon.stopped()
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.OFFLINE, CommandState.COMPLETED)


def test_a_stopped_run_can_not_join_again(daemon: Daemon) -> None:
    run = daemon.start()
    stop(daemon)
    daemon.exit(run, 0, asked="stop", do="none")
    daemon.stopped()
    with pytest.raises(RoleNotYours, match="is not the current one of builder"):
        Program(run).join(joined=True)


# --- the last word wins


def test_start_stop_start_leaves_a_start_of_the_highest_generation(daemon: Daemon) -> None:
    start(daemon)
    stop(daemon, "bob")
    last = start(daemon)
    assert (wanted(daemon), last.generation, last.state) == ((Desired.RUNNING, 3), 3, CommandState.PENDING)
    assert states(daemon) == [("start_agent", "cancelled"), ("stop_agent", "completed"), ("start_agent", "pending")]
    Program(daemon.launch(daemon.open())).join()
    assert daemon.agent.status == AgentStatus.READY


def test_stop_start_stop_of_a_running_agent_leaves_it_stopped(daemon: Daemon) -> None:
    run = daemon.start()
    stop(daemon)
    assert start(daemon, "bob").generation == 3
    assert daemon.agent.status == AgentStatus.RESTARTING
    stop(daemon)
    daemon.exit(run, 0, asked="stop", do="none")
    daemon.stopped()
    assert (wanted(daemon), daemon.agent.status) == ((Desired.STOPPED, 4), AgentStatus.OFFLINE)
    assert states(daemon)[1:] == [("stop_agent", "cancelled"), ("start_agent", "cancelled"), ("stop_agent", "completed")]


def test_a_start_given_after_a_stop_outlives_the_news_that_the_old_process_is_gone(daemon: Daemon) -> None:
    run = daemon.start()
    stop(daemon)
    start(daemon)
    daemon.exit(run, 0, asked="stop", do="none")
    daemon.stopped(generation=2)
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.RESTARTING, CommandState.PENDING)
    Program(daemon.launch(daemon.open())).join()
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.READY, CommandState.COMPLETED)


def test_a_join_of_an_outdated_run_does_not_complete_a_later_start(daemon: Daemon) -> None:
    start(daemon)
    run = daemon.launch(daemon.open())
    restart(daemon)
    with pytest.raises(RoleNotYours, match="is outdated: generation 2 is wanted"):
        Program(run).join()
    assert (daemon.agent.status, daemon.command.state) == (AgentStatus.RESTARTING, CommandState.PENDING)


# --- restart


def test_a_restart_frees_the_task_and_ends_the_old_start_of_its_program(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    claim = working(daemon)
    old = daemon.run
    restart(daemon)
    assert (Task.objects.get().status, Claim.objects.get(pk=claim.pk).outcome) == (TaskStatus.PENDING, Outcome.RESTARTED)
    with pytest.raises(Superseded, match="restarted by alice"):
        Program(old).join(joined=True)
    daemon.exit(old, 0, asked="restart")
    assert daemon.agent.status == AgentStatus.RESTARTING
    new = Program(daemon.launch(daemon.open())).join()
    assert new.take().attempt == 2
    assert (Task.objects.get().crashes, daemon.command.act, daemon.command.state) == (0, Act.RESTART, CommandState.COMPLETED)


def test_a_restart_cancels_a_start_in_flight_and_only_one_is_ever_in_flight(daemon: Daemon) -> None:
    start(daemon)
    restart(daemon, "bob")
    restart(daemon, "bob")
    assert [state for _, state in states(daemon)] == ["cancelled", "cancelled", "pending"]
    assert wanted(daemon) == (Desired.RUNNING, 3)


# --- abort


def test_an_abort_is_about_one_run_and_pressed_twice_it_is_one_command(daemon: Daemon) -> None:
    run = daemon.start()
    command = abort_run(daemon.room.pk, role="builder", actor="alice")
    assert (command.run_id, command.act) == (run.pk, Act.ABORT)
    assert abort_run(daemon.room.pk, role="builder", actor="bob") == command
    assert wanted(daemon) == (Desired.RUNNING, 1)
    daemon.exit(run, None, asked="abort")
    assert (daemon.command.state, daemon.command.outcome) == (CommandState.COMPLETED, f"run {run.pk} completed: ended with exit code None")


def test_an_abort_without_a_run_is_refused(daemon: Daemon) -> None:
    with pytest.raises(WrongState, match="builder has no run to abort: it is OFFLINE"):
        abort_run(daemon.room.pk, role="builder", actor="alice")
    assert not Command.objects.exists()


@pytest.mark.scenario(44)
def test_an_aborted_runs_task_fails_with_retry_and_the_agent_starts_anew(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    daemon.exit(daemon.run, None, asked="abort", message="ended by signal 15")
    task = Task.objects.get()
    assert (task.status, task.crashes) == (TaskStatus.FAILED, 0)
    assert task.failure_reason == "aborted: builder on laptop-7 ended by signal 15"
    assert (daemon.agent.status, wanted(daemon)) == (AgentStatus.RESTARTING, (Desired.RUNNING, 1))
    retry(daemon.room.pk, task_id=task.pk, actor="alice")
    assert Program(daemon.start()).join(joined=True).take().task_id == task.pk


@pytest.mark.scenario(60)
def test_a_restart_keeps_harness_model_and_directory(daemon: Daemon) -> None:
    Placement.objects.update(model="big", directory="/home/alice/src/calc")
    run = daemon.start()
    restart(daemon)
    daemon.exit(run, 0, asked="restart")
    again = daemon.open()
    assert (again.harness, again.model, again.directory) == ("demo", "big", "/home/alice/src/calc")
    assert Run.objects.count() == 2
