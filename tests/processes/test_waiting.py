"""One agent in a terminal: how it comes, how it is kept alive, how it ends, and what the room says meanwhile."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.processes.acts import (
    FAST,
    agent,
    claim_of,
    events,
    new_room,
    send,
    start_waiting,
    take,
    task,
    wait_for_status,
    wait_until_waiting,
    waiting_socket,
)
from tests.processes.broker import Proxy
from tests.processes.conftest import MakeProgram
from tests.processes.program import Command, Program, free_port, wait_until


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Program:
    program = make_program(**FAST)
    program.start()
    return program


@pytest.fixture
def room(program: Program, request: pytest.FixtureRequest) -> str:
    return new_room(program, request.node.name.replace("_", " ")[:60])


@pytest.fixture
def network(program: Program) -> Iterator[Proxy]:
    """Between a client and the server; it can go silent without a connection ending."""
    proxy = Proxy(f"tcp://127.0.0.1:{program.port}")
    proxy.start()
    yield proxy
    proxy.moving.set()
    proxy.ended = True
    proxy.join(5)


def through(network: Proxy, program: Program) -> dict[str, str]:
    return {"CHATROOM_SERVER": network.url.replace("tcp://", "http://"), "CHATROOM_TOKEN": program.token()}


@pytest.mark.scenario(3)
def test_an_older_start_that_shows_up_again_is_superseded_and_ends_with_6(program: Program, room: str) -> None:
    old = start_waiting(program, room)
    old.signal(signal.SIGSTOP)
    new = start_waiting(program, room)
    lease = agent(program, room)["lease_expires_at"]
    old.signal(signal.SIGCONT)
    assert old.wait() == 6
    assert "a newer start of builder took over" in old.stderr
    assert new.returncode is None
    found = agent(program, room)
    assert found["status"] == "ready"
    assert found["waiting"]
    assert found["lease_expires_at"] >= lease
    assert len(events(program, room, name="agent.join")) == 2
    assert not events(program, room, name="agent.leave")


@pytest.mark.scenario(4)
def test_a_stopped_client_is_declared_dead_and_comes_back_by_itself(program: Program, room: str) -> None:
    waiting = start_waiting(program, room)
    waiting.signal(signal.SIGSTOP)
    dead = wait_for_status(program, room, "builder", "dead")
    assert "lease ran out" in dead["error_message"]
    waiting.signal(signal.SIGCONT)
    wait_for_status(program, room, "builder", "ready")
    waiting.wait_for_output("had been declared dead, and is back")
    assert [event["name"] for event in events(program, room, subject="agent", role="builder")] == [
        "agent.join",
        "agent.heartbeat_expired",
        "agent.resume",
    ]
    sent = send(program, room, "still there?")
    assert waiting.wait() == 0
    assert task(program, room, sent)["attempt"] == 1


@pytest.mark.scenario(7)
def test_a_killed_waiting_command_is_dead_after_the_short_lease_and_one_sweep(make_program: MakeProgram) -> None:
    # The whole lease is far longer than this test may take: only the end of the socket can have cut it.
    program = make_program(**{**FAST, "CHATROOM_HEARTBEAT_INTERVAL": "200", "CHATROOM_HEARTBEAT_TTL": "600"})
    program.start("--no-demo")
    room = new_room(program, "Killed")
    waiting = start_waiting(program, room)
    waiting.kill()
    dead = wait_for_status(program, room, "builder", "dead", within=16)
    assert dead["lease_expires_at"] is None
    assert [event["trigger"] for event in events(program, room, subject="agent", role="builder")] == ["join", "heartbeat_expired"]
    program.stop()


@pytest.mark.scenario(8)
def test_a_client_whose_network_went_silent_is_dead_after_its_lease_and_back_with_the_network(
    program: Program, room: str, network: Proxy
) -> None:
    waiting = start_waiting(program, room, settings=through(network, program))
    network.moving.clear()
    wait_for_status(program, room, "builder", "dead")
    network.moving.set()
    wait_for_status(program, room, "builder", "ready")
    assert waiting.returncode is None
    assert not events(program, room, name="agent.leave")


@pytest.mark.scenario(11)
def test_wait_for_task_ends_with_0_when_it_printed_its_task_and_keeps_the_role(program: Program, room: str) -> None:
    waiting = start_waiting(program, room)
    sent = send(program, room, "do this")
    assert waiting.wait() == 0
    assert "do this" in waiting.stdout
    assert f"handoff {room} --claim {claim_of(waiting)}" in waiting.stdout
    assert agent(program, room)["status"] == "working"
    assert agent(program, room)["task"] == sent
    assert not events(program, room, name="agent.leave")


@pytest.mark.scenario(11)
def test_wait_for_task_ends_with_7_after_its_time_and_the_lease_bridges(program: Program, room: str) -> None:
    waiting = program.run("wait_for_task", room, "--role", "builder", "--timeout", "0.5")
    assert waiting.returncode == 7
    assert "no task in 0.5 s" in waiting.stderr
    assert f"wait_for_task {room} --role builder --timeout 0.5" in waiting.stderr
    found = agent(program, room)
    assert (found["status"], found["waiting"]) == ("ready", False)
    assert not events(program, room, name="agent.leave")


@pytest.mark.scenario(11)
def test_wait_for_task_ends_with_8_after_its_time_while_the_server_is_unreachable(program: Program, room: str) -> None:
    nowhere = {"CHATROOM_SERVER": f"http://127.0.0.1:{free_port()}", "CHATROOM_TOKEN": program.token()}
    waiting = program.run("wait_for_task", room, "--role", "builder", "--timeout", "1", settings=nowhere)
    assert waiting.returncode == 8
    assert "not reachable" in waiting.stderr
    assert agent(program, room)["status"] == "offline"


@pytest.mark.scenario(11)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_wait_for_task_takes_leave_when_a_signal_ends_it(program: Program, number: signal.Signals, code: int) -> None:
    room = new_room(program, f"Ended by {number.name}")
    waiting = start_waiting(program, room)
    waiting.signal(number)
    assert waiting.wait() == code
    assert f"stopped by {number.name}" in waiting.stderr
    assert agent(program, room)["status"] == "offline"
    assert len(events(program, room, name="agent.leave")) == 1


@pytest.mark.scenario(11)
def test_wait_for_task_says_as_json_why_it_ended(program: Program, room: str) -> None:
    refused = program.run("wait_for_task", room, "--role", "cook", "--json")
    assert refused.returncode == 4
    error = json.loads(refused.stdout)["error"]
    assert error["code"] == "no_such_role"
    assert error["allowed"] == ["builder", "reviewer"]


@pytest.mark.scenario(13)
def test_of_twenty_that_start_at_once_exactly_one_gets_the_task_and_nineteen_are_superseded(program: Program, room: str) -> None:
    crowd = [program.start_command("wait_for_task", room, "--role", "builder") for _ in range(20)]
    wait_until(lambda: count_ended(crowd, 6) == 19, within=60, what="nineteen ended with 6")
    wait_until_waiting(program, room)
    sent = send(program, room, "for one of you")
    (winner,) = [command for command in crowd if command.returncode != 6]
    assert winner.wait() == 0
    assert sum("for one of you" in command.stdout for command in crowd) == 1
    assert count_ended(crowd, 6) == 19
    assert task(program, room, sent)["attempt"] == 1
    assert len(events(program, room, name="agent.join")) <= 20
    assert not events(program, room, name="agent.leave")


def count_ended(crowd: list[Command], code: int) -> int:
    return sum(command.returncode == code for command in crowd)


@pytest.mark.scenario(13)
def test_an_old_start_that_reconnects_never_wins_again(program: Program, room: str, network: Proxy) -> None:
    old = start_waiting(program, room, settings=through(network, program))
    network.moving.clear()
    new = start_waiting(program, room)
    network.drop_all()
    network.moving.set()
    assert old.wait() == 6
    sent = send(program, room, "for the new one")
    assert new.wait() == 0
    assert task(program, room, sent)["attempt"] == 1


@pytest.mark.scenario(22)
def test_an_offer_whose_client_drops_before_it_received_it_goes_to_the_next(program: Program, room: str) -> None:
    with waiting_socket(program) as first:
        first.hello(room, incarnation="first")
        sent = send(program, room, "catch")
        offer = first.hear("offer")
        assert (offer["task"], offer["attempt"]) == (sent, 1)
        assert task(program, room, sent)["status"] == "acknowledged"
        first.drop()
        wait_until(lambda: task(program, room, sent)["status"] == "pending", what="the task is pending again")
    assert task(program, room, sent)["assigned_role"] == "builder"
    assert take(program, room) != offer["claim"]
    assert task(program, room, sent)["attempt"] == 2
    assert [event["trigger"] for event in events(program, room, subject="task")] == [
        "create",
        "claim_task",
        "recover_stuck_acknowledged",
        "claim_task",
        "deliver",
    ]


@pytest.mark.scenario(22)
def test_a_client_that_never_reads_its_task_leaves_it_to_the_next(program: Program, room: str) -> None:
    """Whatever takes the text away before it was printed: the task is not the command's."""
    waiting = start_waiting(program, room)
    waiting.signal(signal.SIGSTOP)
    sent = send(program, room, "never printed")
    wait_until(lambda: task(program, room, sent)["status"] == "acknowledged", what="it was offered")
    waiting.kill()
    wait_until(lambda: task(program, room, sent)["status"] == "pending", what="the task is pending again")
    assert "never printed" not in waiting.stdout
    assert take(program, room)
