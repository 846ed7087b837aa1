"""The handoff is one transaction, whatever ends the server in the middle of it; and a repeat gets the first answer."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.processes.acts import FAST, act, agent, events, messages, new_room, send, take
from tests.processes.conftest import MakeProgram
from tests.processes.program import Command, Program, free_port, wait_until


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Program:
    # The killed web process is a second one: the first one goes on serving, as it would behind a load balancer.
    program = make_program(**{**FAST, "CHATROOM_HEARTBEAT_TTL": "90", "CHATROOM_HEARTBEAT_INTERVAL": "30"})
    program.start()
    return program


def start_mortal_web(program: Program, *, die_after: str, count: Path) -> tuple[Command, int]:
    port = free_port()
    settings = {
        "DJANGO_SETTINGS_MODULE": "tests.processes.fault_settings",
        "CHATROOM_TEST_DIE_AFTER": die_after,
        "CHATROOM_TEST_COUNT": str(count),
    }
    return program.start_raw("web", "--port", str(port), settings=settings), port


def wait_until_serving(web: Command, port: int, program: Program) -> None:
    wait_until(lambda: program.is_ready(port=port) or web.returncode is not None, what=f"the web process at {port} serves")
    assert web.returncode is None, web.output


def state_of(program: Program, room: str) -> tuple[Any, ...]:
    """Everything a handoff touches, as anybody can see it."""
    status = sorted(f"{item['assigned_role']} {item['status']}" for item in program.api("GET", f"rooms/{room}/tasks").json()["tasks"])
    said = [(message["kind"], message["text"]) for message in messages(program, room)]
    return status, said, len(events(program, room)), agent(program, room, "builder")["status"]


def run_handoff(program: Program, room: str, claim: str, *, port: int | None = None, patience: str = "30") -> Command:
    server = f"http://127.0.0.1:{port or program.port}"
    settings = {"CHATROOM_PATIENCE": patience, "CHATROOM_TOKEN": program.token(), "CHATROOM_SERVER": server}
    return program.run("handoff", room, "--claim", claim, "--next-role", "reviewer", "--text", "it is built", "--json", settings=settings)


def prepared_handoff(program: Program, name: str) -> tuple[str, str]:
    room = new_room(program, name)
    send(program, room, "build it")
    send(program, room, "and then this")
    claim = take(program, room)
    act(program, room, claim, "start")
    return room, claim


@pytest.fixture(scope="module")
def statements(program: Program, tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many statements one handoff is."""
    count = tmp_path_factory.mktemp("count") / "count"
    web, port = start_mortal_web(program, die_after="never", count=count)
    room, claim = prepared_handoff(program, "counted")
    wait_until_serving(web, port, program)
    assert run_handoff(program, room, claim, port=port).returncode == 0
    web.kill()
    number, status = count.read_text().split()
    assert status == "200"
    return int(number)


@pytest.mark.scenario(30, 100)
@pytest.mark.timeout(300)
def test_server_killed_after_any_statement_of_the_handoff_has_done_all_or_nothing(
    program: Program, statements: int, tmp_path: Path, record_property: Any
) -> None:
    record_property("statements", statements)
    print(f"the handoff is {statements} statements: the server is killed after each, and after the commit")
    assert statements > 10
    points = [*map(str, range(1, statements + 1)), "commit"]
    # The next one starts while this one dies.
    mortals = {points[0]: start_mortal_web(program, die_after=points[0], count=tmp_path / points[0])}
    for place, point in enumerate(points):
        if place + 1 < len(points):
            following = points[place + 1]
            mortals[following] = start_mortal_web(program, die_after=following, count=tmp_path / following)
        kill_in_handoff(program, *mortals.pop(point), point=point)


def kill_in_handoff(program: Program, web: Command, port: int, *, point: str) -> None:
    room, claim = prepared_handoff(program, f"killed {point}")
    before = state_of(program, room)
    assert before[0] == ["builder in_progress", "builder queued"]
    wait_until_serving(web, port, program)

    first = run_handoff(program, room, claim, port=port, patience="0.05")
    assert first.returncode == 8, f"{point}: {first.output}"
    assert web.wait() == -signal.SIGKILL

    after = state_of(program, room)
    is_done = point == "commit"
    assert (after == before) is not is_done, f"killed after {point}: {before} became {after}"
    again = run_handoff(program, room, claim)
    assert again.returncode == 0, f"{point}: {again.output}"
    status, said, _number, builder = state_of(program, room)
    assert status == ["builder completed", "builder pending", "reviewer pending"]
    assert said == [("chat", "build it"), ("chat", "and then this"), ("handoff", "it is built")]
    assert builder == "ready"
    assert is_done is (state_of(program, room) == after)
    assert answer_of(run_handoff(program, room, claim)) == answer_of(again)


def answer_of(command: Command) -> Any:
    return json.loads(command.stdout)
