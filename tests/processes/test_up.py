"""`manage.py up`: starts everything, keeps it running, and leaves nothing."""

import http.client
import json
import os
import re
import resource
import signal
import socket
from urllib.parse import urlsplit

import psutil
import pytest

from tests.processes.conftest import MakeProgram
from tests.processes.program import Program, is_alive, wait_until

PARTS = ("web", "worker", "sweep", "valkey")


def parts_of(program: Program) -> list[str]:
    return [name for name in PARTS if name != "valkey" or program.has_valkey]


def test_first_start_prepares_everything_and_says_what_to_try(make_program: MakeProgram) -> None:
    program = make_program(fresh=True)
    program.start()
    said = program.up.stdout if program.up else ""
    assert re.search(rf"{program.url}/\S+", said), said
    for command in ("wait_for_task demo --role builder", "send_message demo --text", "room_status demo"):
        assert command in said
    assert program.http("GET", "/readyz").status == 200
    assert program.home.stat().st_mode & 0o777 == 0o700
    assert json.loads((program.home / "server.json").read_text()) == {"url": program.url, "pid": program.up and program.up.pid}
    assert [room["slug"] for room in program.run_json("rooms")["rooms"]] == ["demo"]
    program.stop()


def test_sign_in_link_works_once(server: Program) -> None:
    assert server.up is not None
    link = re.search(rf"{server.url}(/\S+)", server.up.stdout)
    assert link is not None
    first = server.http("GET", link[1])
    page = server.http("GET", link[1]) if first.status == 200 else first
    assert first.status in {200, 302}
    assert page.status < 500


def test_later_starts_find_nothing_to_prepare(server: Program) -> None:
    assert server.up is not None
    assert "migrations" not in server.up.stdout
    assert "static files" not in server.up.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ends_in_order_and_leaves_no_process(make_program: MakeProgram, number: signal.Signals) -> None:
    program = make_program()
    up = program.start()
    pids = program.pids()
    assert len(pids) == len(parts_of(program))
    up.signal(number)
    assert up.wait(within=10) == 0
    assert not [pid for pid in pids if is_alive(pid)]
    assert not list((program.home / "run").glob("*.pid"))


def test_the_web_process_opens_as_many_sockets_as_the_system_allows(make_program: MakeProgram) -> None:
    program = make_program()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        program.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert psutil.Process(program.part_pid("web")).rlimit(psutil.RLIMIT_NOFILE) == (hard, hard)
    assert psutil.Process(program.part_pid("sweep")).rlimit(psutil.RLIMIT_NOFILE) == (256, hard)
    program.stop()


def test_a_log_that_grows_large_is_set_aside(server: Program) -> None:
    log = server.home / "log" / "worker.log"
    with log.open("ab") as file:
        file.write(b"x" * 6 * 2**20)
    wait_until(lambda: log.stat().st_size < 2**20)
    assert log.with_suffix(".log.1").stat().st_size >= 6 * 2**20


def test_a_huge_body_is_refused_and_takes_no_memory(server: Program) -> None:
    web = psutil.Process(server.part_pid("web"))
    before, block, blocks = web.memory_info().rss, b" " * 2**20, 200
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    connection.putrequest("POST", "/api/v1/device")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(blocks * len(block)))
    connection.endheaders()
    for _ in range(blocks):
        connection.send(block)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "too_large")
    connection.close()
    assert web.memory_info().rss - before < 50 * 2**20


def test_ends_while_a_part_is_frozen_and_a_client_waits(make_program: MakeProgram) -> None:
    program = make_program()
    up = program.start()
    pids = program.pids()
    waiting = program.start_command("wait_for_task", "demo", "--role", "builder")
    wait_until(lambda: agent(program)["status"] == "ready", what="the builder is ready")
    program.kill_part("web", number=signal.SIGSTOP)
    up.signal(signal.SIGINT)
    assert up.wait(within=10) == 0
    assert not [pid for pid in pids if is_alive(pid)]
    assert waiting.returncode is None


def agent(program: Program) -> dict[str, object]:
    found: dict[str, object] = program.run_json("room_status", "demo")["agents"][0]
    return found


def test_killed_itself_it_leaves_no_process(make_program: MakeProgram) -> None:
    program = make_program()
    up = program.start()
    pids = program.pids()
    up.signal(signal.SIGKILL)
    up.wait(within=5)
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], within=5, what="every part ended")
    program.start()
    assert program.http("GET", "/readyz").status == 200
    program.stop()


def test_killed_during_its_start_it_leaves_no_process(make_program: MakeProgram) -> None:
    program = make_program()
    up = program.start("--no-demo", ready=False)
    up.wait_for_output("starting: web")
    wait_until(lambda: len(program.pids()) == len(parts_of(program)), what="every part was started")
    pids = program.pids()
    up.signal(signal.SIGKILL)
    up.wait(within=5)
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], within=5, what="every part ended")


@pytest.mark.parametrize("name", PARTS)
def test_a_killed_part_is_started_again_and_said(server: Program, name: str) -> None:
    assert server.up is not None
    if name not in parts_of(server):
        assert not (server.home / "run" / f"{name}.pid").exists()
        return
    old = server.kill_part(name)
    server.wait_for_restart(name, old=old)
    server.up.wait_for_output(f"{name}: ended unexpectedly (SIGKILL), is started again in")
    server.up.wait_for_output(f"{name}: started again (PID {server.part_pid(name)})")
    server.wait_until_ready()
    sent = server.run_json("send_message", "demo", "--text", f"after {name}")
    assert sent["task"]


def test_hang_up_does_not_end_it(server: Program) -> None:
    assert server.up is not None
    server.up.signal(signal.SIGHUP)
    server.up.wait_for_output("SIGHUP")
    assert server.is_ready()
    assert server.up.returncode is None


def test_a_second_one_with_the_same_home_is_refused_with_the_pid(server: Program) -> None:
    assert server.up is not None
    second = server.start_raw("up", "--port", "1")
    assert second.wait() == 1
    assert f"PID {server.up.pid}" in second.stderr
    assert server.url in second.stderr
    assert server.is_ready()


def test_a_port_in_use_is_named_before_anything_starts(make_program: MakeProgram) -> None:
    program = make_program()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", program.port))
        holder.listen()
        up = program.start(ready=False)
        assert up.wait() == 1
    assert f"port {program.port} on 127.0.0.1 is in use by" in up.stderr
    assert f"PID {os.getpid()}" in up.stderr
    assert f"--port {program.port + 1}" in up.stderr
    assert "starting" not in up.stdout
    assert not (program.home / "server.json").exists()


def test_a_home_deeper_than_a_socket_path_may_be_works(make_program: MakeProgram, tmp_path_factory: pytest.TempPathFactory) -> None:
    deep = tmp_path_factory.mktemp("deep")
    for _ in range(4):
        deep /= "a-directory-with-quite-a-long-name-in-it"
    program = make_program(home=deep / "home")
    program.start()
    assert program.run_json("send_message", "demo", "--text", "from the deep")["task"]
    program.stop()


def test_without_a_demo_there_is_no_room(make_program: MakeProgram) -> None:
    program = make_program()
    up = program.start("--no-demo")
    assert program.run_json("rooms")["rooms"] == []
    assert "wait_for_task" not in up.stdout
    program.stop()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "DATABASE_URL",
            "postgres://somebody:secret@127.0.0.1:1/nothing",
            "the database postgres://somebody@127.0.0.1:1/nothing cannot be used",
        ),
        ("DATABASE_URL", "mysql://127.0.0.1/x", "expected sqlite:///path or postgres://"),
        ("REDIS_URL", "redis://:secret@127.0.0.1:1/0", "Redis at redis://127.0.0.1:1/0 does not answer"),
        ("CHATROOM_SWEEP_INTERVAL", "abc", "CHATROOM_SWEEP_INTERVAL=abc: expected seconds, for example 5"),
    ],
)
def test_a_wrong_setting_ends_the_start_with_words(make_program: MakeProgram, variable: str, value: str, words: str) -> None:
    program = make_program(**{variable: value})
    up = program.start(ready=False)
    assert up.wait(within=30) == 1
    assert words in up.stderr
    assert "Traceback" not in up.output
    assert "secret" not in up.output


def test_sweeps_go_on_while_the_broker_hangs(make_program: MakeProgram) -> None:
    program = make_program(CHATROOM_SWEEP_INTERVAL="0.5")
    up = program.start()
    program.broker.freeze()
    up.wait_for_output("sweeping without it", within=30)
    program.broker.thaw()
    up.wait_for_output("sweeps come from it again", within=45)
    program.stop()


def test_no_part_has_children_of_its_own(server: Program) -> None:
    assert server.up is not None
    children = psutil.Process(server.up.pid).children()
    assert {child.pid for child in children} == {server.part_pid(name) for name in parts_of(server)}
    assert not [grandchild for child in children for grandchild in child.children()]
