"""Start, stop, restart: the last word wins, and what people are told is what the process table says."""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.processes.acts import agent, events, messages, new_room, send, task, wait_for_status
from tests.processes.conftest import MakeProgram
from tests.processes.machines import SETTINGS, Machine, hold, is_waiting, order, pid_of, wait_for_another
from tests.processes.program import Program, is_alive, wait_until

RESTART_DELAY = 2.0


# Its first test waits for the start of the server too.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Iterator[Program]:
    program = make_program(**{**SETTINGS, "CHATROOM_RESTART_DELAY": str(RESTART_DELAY)})
    program.start("--no-demo")
    yield program
    program.stop()


@pytest.fixture(scope="module")
def machine(program: Program) -> Iterator[Machine]:
    machine = Machine(program, "laptop-7")
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture
def title(request: pytest.FixtureRequest) -> str:
    return str(request.node.name.replace("_", " ")[5:60])


def steps(program: Program, room: str, subject: str) -> list[str]:
    return [event["to"] for event in events(program, room, subject=subject) if event["to"]]


def runs(program: Program, room: str) -> set[int]:
    return {event["subject_id"] for event in events(program, room, subject="run")}


def living(machine: Machine, room: str) -> list[int]:
    """The programs that play a role of that room on this machine."""
    return [pid for pid in machine.leaders() if machine.environment(pid).get("CHATROOM_ROOM") == room]


def outlast_the_delay() -> None:
    """Until a restart that nobody called off would have happened. That nothing happens cannot be waited for: only time says it."""
    until = time.monotonic() + RESTART_DELAY * 1.5
    wait_until(lambda: time.monotonic() > until, within=60)


@pytest.mark.scenario(48)
def test_a_start_is_seen_step_by_step(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    assert steps(program, room, "run") == ["validating", "ready", "preparing", "running"]
    assert steps(program, room, "agent") == ["restarting", "ready"]
    assert living(machine, room) == [pid_of(program, room)]


@pytest.mark.scenario(53)
def test_a_stopped_agent_is_aborting_until_its_group_is_gone_then_offline(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title, harness="stubborn")
    hold(program, room)
    pid = pid_of(program, room)
    order(program, room, "stop")
    wait_until(lambda: (agent(program, room)["run"] or {}).get("state") == "aborting", what="the run is aborting")
    wait_for_status(program, room, "builder", "offline")
    assert not is_alive(pid)
    outlast_the_delay()
    assert living(machine, room) == []
    assert steps(program, room, "run")[-2:] == ["aborting", "completed"]
    assert agent(program, room)["status"] == "offline"
    assert len(runs(program, room)) == 1


@pytest.mark.scenario(98)
def test_a_stop_while_the_waiting_command_is_open_is_offline_only_when_everything_is_gone(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title, harness="stubborn")
    of_room = [pid for pid in machine.processes() if machine.environment(pid).get("CHATROOM_ROOM") == room]
    assert len(of_room) >= 4, "the program, its waiting command, a child, and a grandchild that got away"
    order(program, room, "stop")
    wait_for_status(program, room, "builder", "offline")
    assert [pid for pid in of_room if is_alive(pid)] == []


def test_an_aborted_run_fails_its_task_and_a_retry_gives_it_to_the_next_process(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    work, pid = hold(program, room), pid_of(program, room)
    aborted = program.run("abort_run", room, "--role", "builder", "--wait")
    assert aborted.returncode == 0, aborted.output
    assert not is_alive(pid)
    assert task(program, room, work)["status"] == "failed"
    assert "aborted" in next(event["reason"] for event in events(program, room, subject="task") if event["to"] == "failed")
    other = wait_for_another(program, room, than=pid)
    assert program.run("tasks", room, "retry", str(work)).returncode == 0
    wait_until(lambda: task(program, room, work)["attempt"] == 2, what="the next process has it")
    assert living(machine, room) == [other]


@pytest.mark.scenario(54)
def test_a_stop_during_the_restart_delay_wins(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    os.kill(pid_of(program, room), signal.SIGKILL)
    wait_for_status(program, room, "builder", "restarting")
    # Not by the command: on a busy machine its start may take longer than the delay.
    order(program, room, "stop")
    wait_for_status(program, room, "builder", "offline")
    outlast_the_delay()
    assert agent(program, room)["status"] == "offline"
    assert living(machine, room) == []
    assert len(runs(program, room)) == 1
    send(program, room, "is there anybody?")
    outlast_the_delay()
    assert agent(program, room)["status"] == "offline", "no message wakes what a person stopped"


def test_people_are_told_at_once_that_work_waits_for_a_stopped_agent(program: Program, machine: Machine, title: str) -> None:
    """What the web process leaves to the worker reaches it by message: the sweep, which sends again, would come half a minute later."""
    room = machine.room(title)
    order(program, room, "stop")
    wait_for_status(program, room, "builder", "offline")
    send(program, room, "is there anybody?")
    [waiting] = messages(program, room, "notice")
    assert "it was stopped by owner" in waiting["text"]
    wait_until(lambda: events(program, room, name="room.tell"), within=15, what="the worker has passed the notice on")


@pytest.mark.scenario(56)
def test_start_stop_start_in_a_row_ends_with_one_process_and_a_later_crash_is_a_crash(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title)
    for act in ("stop", "start", "stop", "start"):
        order(program, room, act)
    wait_until(lambda: is_waiting(program, room, "builder"), within=40, what="the builder waits")
    wait_until(lambda: living(machine, room) == [pid_of(program, room)], within=10, what="one process plays it")
    pid = pid_of(program, room)
    os.kill(pid, signal.SIGUSR1)
    wait_for_status(program, room, "builder", "restarting")
    wait_for_another(program, room, than=pid)

    for act in ("start", "stop"):
        order(program, room, act)
    wait_for_status(program, room, "builder", "offline")
    outlast_the_delay()
    assert (agent(program, room)["status"], living(machine, room)) == ("offline", [])


@pytest.mark.scenario(95)
def test_start_pressed_on_a_running_agent_starts_nothing(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    pid, known = pid_of(program, room), runs(program, room)
    answer = program.run("start_agent", room, "--role", "builder", "--wait")
    assert answer.returncode == 0
    assert "already" in answer.output
    assert (pid_of(program, room), runs(program, room)) == (pid, known)
    assert living(machine, room) == [pid]


@pytest.mark.scenario(96)
def test_a_person_who_waits_as_a_remote_role_is_refused_and_told_how_to_make_it_custom(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title)
    waiting = program.run("wait_for_task", room, "--role", "builder", "--timeout", "10")
    assert waiting.returncode == 5
    assert "--kind custom" in waiting.stderr
    assert is_waiting(program, room, "builder")


@pytest.mark.scenario(97)
def test_an_exhausted_agent_stays_so_however_often_its_machine_reconnects_until_a_person_restarts_it(
    program: Program, machine: Machine, title: str
) -> None:
    room = new_room(program, title, team=["builder"])
    machine.place(room, harness="broken")
    send(program, room, "work")
    wait_for_status(program, room, "builder", "dead_failed_revive", within=60)
    known = runs(program, room)
    assert len(known) == 3
    for number in range(4):
        machine.kill()
        machine.start()
        send(program, room, f"more work {number}")
    assert agent(program, room)["status"] == "dead_failed_revive"
    assert runs(program, room) == known
    assert len([message for message in messages(program, room, "notice") if "unrecoverable" in message["text"]]) == 1

    machine.place(room, harness="agent")
    restarted = program.run("restart_agent", room, "--role", "builder", "--wait")
    assert restarted.returncode == 0, restarted.output
    wait_until(lambda: len(messages(program, room, "result")) == 5, within=40, what="all the work that waited is done")


def test_configuring_an_agent_whose_machine_goes_away_meanwhile_is_refused_with_the_way_out(program: Program, title: str) -> None:
    machine = Machine(program, "going-away")
    machine.start()
    room = machine.room(title)
    assert machine.daemon is not None
    machine.daemon.signal(signal.SIGSTOP)
    moving = program.start_command("configure_agent", room, "--role", "builder", "--kind", "custom")
    moving.wait_for_output("stopping it first")
    assert moving.wait(within=40) == 5
    assert "is away" in moving.stderr
    assert "--force" in moving.stderr
    machine.daemon.signal(signal.SIGCONT)
    wait_for_status(program, room, "builder", "offline")
    machine.stop()
