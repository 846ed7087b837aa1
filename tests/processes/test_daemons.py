"""Daemons that die, are frozen, are told to hang up, and come back: what they look after is as it was, or its end is told."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from tests.processes.acts import agent, events, messages, room_status, task, wait_for_status
from tests.processes.browser import Browser
from tests.processes.conftest import MakeProgram
from tests.processes.machines import AGENT, HARNESSES, SETTINGS, Machine, hold, order, pid_of, wait_for_another
from tests.processes.program import Program, is_alive, wait_until

# Its first test waits for the start of the server too.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Iterator[Program]:
    program = make_program(**SETTINGS)
    program.start("--no-demo")
    yield program
    program.stop()


@pytest.fixture
def machine(program: Program, request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(program, f"m-{abs(hash(request.node.name)) % 10**6}")
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture
def title(request: pytest.FixtureRequest) -> str:
    return str(request.node.name.replace("_", " ")[5:60])


def offered(program: Program, machine: Machine) -> set[str]:
    return {one["name"] for one in program.api("GET", f"machines/{machine.name}").json()["harnesses"]}


def failed_runs(program: Program, room: str, role: str = "builder") -> list[str]:
    return [event["reason"] for event in events(program, room, subject="run", role=role) if event["to"] == "failed"]


@pytest.mark.scenario(36)
def test_a_daemon_that_starts_is_connected_and_visible_with_what_it_offers(program: Program, machine: Machine) -> None:
    found = program.api("GET", f"machines/{machine.name}").json()
    assert found["status"] == "connected"
    assert {harness["name"]: harness["ok"] for harness in found["harnesses"]} == dict.fromkeys(HARNESSES, True)
    page = Browser.of_owner(program).get("/machines/")
    assert machine.name in page
    assert "stubborn" in page


@pytest.mark.scenario(37)
def test_agents_of_a_killed_daemon_live_on_say_so_and_are_adopted(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title, "builder", "reviewer")
    work = hold(program, room)
    before = {role: pid_of(program, room, role) for role in ("builder", "reviewer")}
    machine.kill()
    machine.wait_for("disconnected", within=15)
    assert room_status(program, room)["machines"][0]["status"] == "disconnected"
    assert all(map(is_alive, before.values()))

    machine.start()
    wait_for_status(program, room, "builder", "working")
    wait_for_status(program, room, "reviewer", "ready")
    assert {role: pid_of(program, room, role) for role in before} == before
    assert sorted(machine.leaders()) == sorted(before.values())
    found = task(program, room, work)
    assert (found["status"], found["attempt"], found["holder"]) == ("in_progress", 1, "builder")
    assert failed_runs(program, room) == []


@pytest.mark.scenario(91)
def test_one_ended_while_the_daemon_was_away_and_is_told_with_its_exit_code_the_other_is_adopted(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title, "builder", "reviewer")
    work, first, second = hold(program, room), pid_of(program, room, "builder"), pid_of(program, room, "reviewer")
    machine.kill()
    os.kill(first, signal.SIGUSR1)
    wait_until(lambda: not is_alive(first), what="the builder has ended")
    machine.start()
    wait_for_another(program, room, "reviewer", than=0)
    wait_until(lambda: pid_of(program, room) not in {0, first}, within=40, what="the builder was started anew")
    assert pid_of(program, room, "reviewer") == second
    assert ["exit code 3" in reason for reason in failed_runs(program, room)] == [True]
    assert failed_runs(program, room, "reviewer") == []
    wait_until(lambda: task(program, room, work)["attempt"] == 2, what="the next attempt has the task")


@pytest.mark.scenario(55)
def test_a_stop_given_while_the_daemon_was_away_happens_when_it_is_back(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    pid = pid_of(program, room)
    machine.kill()
    machine.wait_for("disconnected")
    command = order(program, room, "stop")
    assert command["state"] in {"pending", "dispatched"}
    assert is_alive(pid)
    machine.start()
    wait_for_status(program, room, "builder", "offline")
    assert not is_alive(pid)
    wait_until(lambda: not machine.processes(), within=5, what="nothing of it is left")
    wait_until(lambda: program.api("GET", f"commands/{command['command']}").json()["state"] == "completed", what="the stop is confirmed")


@pytest.mark.scenario(55)
def test_a_stop_given_while_the_daemon_is_away_for_longer_than_a_lease_is_the_last_word(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title)
    work, pid = hold(program, room), pid_of(program, room)
    machine.kill()
    machine.wait_for("disconnected")
    command = order(program, room, "stop")
    wait_for_status(program, room, "builder", "dead", within=90)
    assert is_alive(pid)
    assert task(program, room, work)["status"] == "pending"
    machine.start()
    wait_for_status(program, room, "builder", "offline", within=30)
    wait_until(lambda: not machine.processes(), within=10, what="nothing of it is left")
    wait_until(lambda: program.api("GET", f"commands/{command['command']}").json()["state"] == "completed", what="the stop is confirmed")
    assert (agent(program, room)["status"], task(program, room, work)["status"]) == ("offline", "pending")


def test_a_restart_given_while_the_daemon_was_away_happens_when_it_is_back(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    pid = pid_of(program, room)
    machine.kill()
    machine.wait_for("disconnected")
    command = order(program, room, "restart")
    assert is_alive(pid)
    machine.start()
    other = wait_for_another(program, room, than=pid)
    assert (is_alive(pid), machine.leaders()) == (False, [other])
    wait_until(lambda: program.api("GET", f"commands/{command['command']}").json()["state"] == "completed", what="it is confirmed")


@pytest.mark.scenario(92)
@pytest.mark.parametrize("stage", ["run.json", "lock", "spec.json", "pid.json"])
def test_a_daemon_killed_in_the_middle_of_a_start_makes_no_second_process(
    program: Program, machine: Machine, title: str, stage: str
) -> None:
    room = machine.room(title)
    program.run("stop_agent", room, "--role", "builder", "--wait")
    known = set((machine.home / "runs").iterdir())
    order(program, room, "start")
    while not [path for path in set((machine.home / "runs").iterdir()) - known if (path / stage).exists()]:
        assert machine.daemon is not None
        assert machine.daemon.returncode is None
    machine.kill()
    machine.start()
    wait_for_status(program, room, "builder", "ready", within=40)
    wait_until(lambda: machine.leaders() == [pid_of(program, room)], within=30, what="the one process is the one the panel shows")


@pytest.mark.scenario(42)
def test_a_stranger_with_the_pid_of_an_agent_is_not_touched(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title)
    pid = pid_of(program, room)
    machine.kill()
    for number in machine.processes():
        os.kill(number, signal.SIGKILL)
    stranger = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        [file] = (path / "pid.json" for path in (machine.home / "runs").iterdir() if not (path / "settled").exists())
        named = json.loads(file.read_text())
        for who in ("shim", "program"):
            named[who]["pid"] = stranger.pid
        file.write_text(json.dumps(named))
        machine.start()
        wait_for_another(program, room, than=pid)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.scenario(41)
def test_of_two_daemons_started_at_once_one_runs_and_one_says_who_holds_the_lock(program: Program) -> None:
    machine = Machine(program, "twice")
    both = [machine.launch(), machine.launch()]
    wait_until(lambda: [one for one in both if one.returncode is not None], within=40, what="one of them has ended")
    [loser] = (one for one in both if one.returncode is not None)
    [machine.daemon] = (one for one in both if one is not loser)
    assert loser.returncode == 5
    assert f"PID {machine.pid}" in loser.stderr
    machine.wait_for("connected", within=40)
    machine.stop()


@pytest.mark.scenario(94)
def test_a_daemon_with_copied_credentials_is_refused_while_the_first_answers(program: Program, machine: Machine) -> None:
    copy = Machine(program, f"{machine.name}-copy")
    copy.home.mkdir(mode=0o700)
    (copy.home / "machine.json").write_bytes((machine.home / "machine.json").read_bytes())
    (copy.home / "machine.json").chmod(0o600)
    second = copy.launch()
    assert second.wait(within=60) == 5
    assert "already connected by another daemon" in second.stderr
    assert machine.status() == "connected"
    assert machine.daemon is not None
    assert machine.daemon.returncode is None


@pytest.mark.scenario(44)
def test_sighup_aborts_every_run_and_the_same_daemon_starts_anew_with_the_new_configuration(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title, "builder", "reviewer")
    work, before, daemon = hold(program, room), {role: pid_of(program, room, role) for role in ("builder", "reviewer")}, machine.pid
    machine.offer({"agent": [AGENT, "changed"], "another": [AGENT]})
    os.kill(machine.pid, signal.SIGHUP)
    pids = [wait_for_another(program, room, role, than=pid) for role, pid in before.items()]
    found = task(program, room, work)
    assert (found["status"], "abort" in found["failure_reason"].lower()) == ("failed", True)
    assert not [pid for pid in before.values() if is_alive(pid)]
    assert (machine.pid, machine.daemon.returncode if machine.daemon else 0) == (daemon, None)
    assert [machine.processes()[pid].split()[-1] for pid in pids] == ["changed", "changed"]
    wait_until(lambda: offered(program, machine) == {"agent", "another"}, what="the new offer is shown")
    assert program.api("POST", f"rooms/{room}/tasks/{work}/retry", {}).status == 200
    wait_until(lambda: task(program, room, work)["status"] == "in_progress", what="it is tried again")


@pytest.mark.scenario(45)
def test_sigterm_ends_a_stubborn_agent_with_everything_it_started(program: Program, machine: Machine, title: str) -> None:
    room = machine.room(title, harness="stubborn")
    hold(program, room)
    left = [pid for pid, words in machine.processes().items() if words == "sleep 1000"]
    assert len(left) == 2, machine.processes()
    assert machine.daemon is not None
    machine.daemon.signal(signal.SIGTERM)
    assert machine.daemon.wait(within=16) == 143
    assert machine.processes() == {}
    assert not [pid for pid in left if is_alive(pid)]
    machine.wait_for("disconnected")


def test_a_killed_shim_leaves_no_orphan_behind(program: Program, machine: Machine, title: str) -> None:
    """Nobody is left who could reap: the child and the grandchild in a session of its own are found all the same."""
    room = machine.room(title, harness="stubborn")
    pid, old = pid_of(program, room), machine.processes()
    [shim] = (number for number, words in old.items() if "shim" in words)
    os.kill(shim, signal.SIGKILL)
    wait_for_another(program, room, than=pid)
    assert [number for number in old if is_alive(number)] == []
    assert ["shim, which was killed" in reason for reason in failed_runs(program, room)] == [True]


@pytest.mark.scenario(46)
def test_sighup_to_up_aborts_the_runs_of_every_machine_and_the_server_stays(program: Program, machine: Machine, title: str) -> None:
    other = Machine(program, f"{machine.name}-other")
    other.start()
    try:
        places = {machine.room(f"{title} 1"): machine, other.room(f"{title} 2"): other}
        before = {room: pid_of(program, room) for room in places}
        work = {room: hold(program, room) for room in places}
        assert program.up is not None
        program.up.signal(signal.SIGHUP)
        for room, pid in before.items():
            wait_for_another(program, room, than=pid)
            assert not is_alive(pid)
            assert task(program, room, work[room])["status"] == "failed"
        assert program.up.returncode is None
        assert program.is_ready()
        assert "SIGHUP: 2 runs to abort; the server stays up" in program.up.output
        assert [one.daemon.returncode for one in places.values() if one.daemon] == [None, None]
    finally:
        other.stop()


@pytest.mark.scenario(25)
def test_work_of_a_machine_that_lost_power_is_pending_when_its_lease_is_over_and_not_before(
    program: Program, machine: Machine, title: str
) -> None:
    room = machine.room(title)
    work = hold(program, room)
    machine.kill()
    for pid in machine.processes():
        os.kill(pid, signal.SIGKILL)
    machine.wait_for("disconnected", within=15)
    assert task(program, room, work)["status"] == "in_progress", "a lost machine is not a lost lease"
    wait_for_status(program, room, "builder", "dead", within=60)
    found = task(program, room, work)
    assert (found["status"], found["assigned_role"], found["holder"]) == ("pending", "builder", None)
    assert [event["name"] for event in events(program, room, subject="agent") if event["to"] == "dead"] == ["agent.heartbeat_expired"]
    assert len([message for message in messages(program, room, "notice") if machine.name in message["text"]]) <= 1

    machine.start()
    wait_until(lambda: task(program, room, work)["status"] == "in_progress", within=40, what="it is done by the next run")
    assert len(machine.leaders()) == 1


@pytest.mark.scenario(39)
def test_while_the_server_is_away_agents_go_on_and_what_ended_is_told_in_order(program: Program, machine: Machine, title: str) -> None:
    """The last one here: after it comes quiet time, in which no machine is declared lost."""
    room = machine.room(title, "builder", "reviewer", "tester")
    work = hold(program, room, "tester")
    before = {role: pid_of(program, room, role) for role in ("builder", "reviewer", "tester")}
    program.stop_server()
    for number, role in enumerate(("reviewer", "builder"), start=1):
        os.kill(before[role], signal.SIGUSR1)
        wait_until(partial(machine.has_settled, number), what=f"the daemon has noted the end of {role}")
    assert is_alive(before["tester"])
    program.start("--no-demo")
    for role in ("reviewer", "builder"):
        wait_for_another(program, room, role, than=before[role])  # a daemon may pause for 30 s
    ended = [event["role"] for event in events(program, room, subject="run") if event["to"] == "failed"]
    assert ended == ["reviewer", "builder"]
    wait_for_status(program, room, "tester", "working")
    assert (pid_of(program, room, "tester"), task(program, room, work)["attempt"]) == (before["tester"], 1)
    assert machine.daemon is not None
    assert [machine.daemon.stderr.count(words) for words in ("no connection to", "is back")] == [1, 1]
