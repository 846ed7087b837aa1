from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.client.conftest import PROJECT, Started
from tests.client.fake_server import OFFER, WELCOME, FakeServer, Gone, Peer

WAIT = ("wait_for_task", "demo", "--role", "builder")
RESUME = "-m chatroom.client wait_for_task demo --role builder"
WITHDRAWN_OFFER = {**OFFER, "claim": "c_old", "task": 11, "text": "the first"}
Start = Callable[..., Started]


def until_gone(peer: Peer) -> list[dict[str, object]]:
    """What else the client says, and with which code it closes."""
    said: list[dict[str, object]] = []
    try:
        while True:
            said.append(peer.receive())
    except Gone as gone:
        said.append({"closed": gone.code})
    return said


def test_a_task_is_printed_with_its_next_commands_and_the_lease_bridges(server: FakeServer, start: Start) -> None:
    ends: list[dict[str, object]] = []
    hellos: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        assert peer.headers["Authorization"] == "Bearer t0ken"
        hellos.append(peer.welcome())
        peer.hand_over(text="Mend \x1b[31mthe\x1b[0m test\x07")
        ends.extend(until_gone(peer))

    server.next_connections(script)
    code, out, err = start(*WAIT).finish()
    assert (code, ends) == (0, [{"type": "bye", "reason": "task"}, {"closed": 1000}])
    assert "waiting for work as builder in demo…" in err
    assert "Mend the test\n" in out
    assert "-m chatroom.client task_started demo --claim c_9f\n" in out
    assert "handoff demo --claim c_9f --next-role ROLE" in out
    assert {name: hellos[0][name] for name in ("protocol", "room", "role", "joined")} == {
        "protocol": 1, "room": "demo", "role": "builder", "joined": False,
    }  # fmt: skip


def test_json_prints_exactly_the_task(server: FakeServer, start: Start) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.hand_over(context=[{"from": "alice", "to": None, "text": "before", "time": "2026-11-20T14:00:00Z"}])
        until_gone(peer)

    server.next_connections(script)
    code, out, _ = start(*WAIT, "--json").finish()
    assert code == 0
    assert json.loads(out) == {
        "task": 12, "claim": "c_9f", "attempt": 1, "role": "builder", "text": "Mend the test", "from": "alice",
        "context": [{"from": "alice", "to": None, "text": "before", "time": "2026-11-20T14:00:00Z"}],
    }  # fmt: skip


def test_nothing_is_printed_before_the_server_confirms(server: FakeServer, start: Start) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.send(WITHDRAWN_OFFER)
        peer.expect("received")
        peer.send({"type": "withdrawn", "claim": "c_old"})
        peer.hand_over(text="the second")
        until_gone(peer)

    server.next_connections(script)
    code, out, _ = start(*WAIT).finish()
    assert code == 0
    assert "the second" in out
    assert "the first" not in out


def test_a_late_withdrawal_of_one_offer_does_not_take_the_next_one_with_it(server: FakeServer, start: Start) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.send(WITHDRAWN_OFFER)
        peer.expect("received")
        peer.send(OFFER)
        peer.expect("received")
        peer.send({"type": "withdrawn", "claim": "c_old"})
        peer.send({"type": "confirmed", "claim": OFFER["claim"]})
        until_gone(peer)

    server.next_connections(script)
    code, out, _ = start(*WAIT).finish()
    assert code == 0
    assert "the first" not in out
    assert "task_started demo --claim c_9f" in out


@pytest.mark.scenario(11)
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_takes_leave_and_names_the_command_that_resumes(
    server: FakeServer, start: Start, signum: signal.Signals, exit_code: int
) -> None:
    said: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome()
        said.append(peer.receive())
        peer.send({"type": "left"})

    server.next_connections(script)
    process = start(*WAIT)
    process.wait_until_waiting()
    process.send_signal(signum)
    code, out, err = process.finish()
    assert (code, out, said) == (exit_code, "", [{"type": "leave"}])
    assert RESUME in err


def test_a_signal_while_the_server_is_lost_takes_leave_by_http(server: FakeServer, start: Start) -> None:
    hellos: list[dict[str, object]] = []
    server.routes["POST rooms/demo/agents/builder/leave"] = [(200, {"role": "builder", "status": "offline"})]
    server.next_connections(lambda peer: hellos.append(peer.welcome()))
    process = start(*WAIT, env={"CHATROOM_RECONNECT_WITHIN": "1000"})
    process.wait_until_waiting()
    assert "server lost" in process.line()
    process.send_signal(signal.SIGTERM)
    assert process.finish()[0] == 143
    assert server.asked("POST rooms/demo/agents/builder/leave")[0]["incarnation"] == hellos[0]["incarnation"]


@pytest.mark.scenario(11)
def test_the_time_out_exits_7_and_lets_the_lease_bridge(server: FakeServer, start: Start) -> None:
    said: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome()
        said.extend(until_gone(peer))

    server.next_connections(script)
    code, out, err = start(*WAIT, "--timeout", "0.2", "--json").finish()
    assert (code, json.loads(out)["error"]["code"]) == (7, "timeout")
    assert said == [{"type": "bye", "reason": "timeout"}, {"closed": 1000}]
    assert f"{RESUME} --timeout 0.2" in err


@pytest.mark.scenario(11)
def test_the_time_out_exits_8_while_the_server_is_unreachable(server: FakeServer, start: Start) -> None:
    server.close()
    code, _, err = start(*WAIT, "--timeout", "0.3").finish()
    assert code == 8
    assert err.count("server lost") == 1
    assert RESUME in err


def test_an_offer_unconfirmed_at_the_time_out_is_given_back(server: FakeServer, start: Start) -> None:
    said: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome()
        peer.send(WITHDRAWN_OFFER)
        peer.expect("received")
        said.append(peer.receive())
        peer.send({"type": "left"})

    server.next_connections(script)
    code, out, _ = start(*WAIT, "--timeout", "0.1").finish()
    assert (code, out, said) == (7, "", [{"type": "leave"}])


@pytest.mark.scenario(3)
def test_superseded_exits_6_without_leave(server: FakeServer, start: Start) -> None:
    said: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome()
        peer.send({"type": "superseded", "message": "a newer start of builder took over at 14:02:40"})
        said.extend(until_gone(peer))

    server.next_connections(script)
    code, out, err = start(*WAIT).finish()
    assert (code, out, said) == (6, "", [{"closed": None}])
    assert "a newer start of builder took over" in err
    assert RESUME in err


@pytest.mark.parametrize(
    ("error_code", "exit_code"),
    [("role_not_yours", 5), ("no_such_room", 4), ("no_such_role", 4), ("not_allowed", 3), ("superseded", 6), ("wrong_state", 5)],
)
def test_a_refusal_exits_by_its_code(server: FakeServer, start: Start, error_code: str, exit_code: int) -> None:
    def script(peer: Peer) -> None:
        peer.expect("hello")
        peer.send({"type": "refused", "error": {"code": error_code, "message": "no, because", "current": None, "allowed": []}})
        peer.close(4403)
        until_gone(peer)

    server.next_connections(script)
    code, out, err = start(*WAIT).finish()
    assert (code, out) == (exit_code, "")
    assert "no, because" in err


def test_a_lost_server_is_said_once_and_the_same_incarnation_comes_back(server: FakeServer, start: Start) -> None:
    hellos: list[dict[str, object]] = []

    def dropping(peer: Peer) -> None:
        hellos.append(peer.welcome())

    def closing(peer: Peer) -> None:
        hellos.append(peer.expect("hello"))
        peer.send({"type": "retry", "message": "ending", "after": 0.05})
        peer.close(1013)

    def at_last(peer: Peer) -> None:
        hellos.append(peer.welcome(resumed=True))
        peer.hand_over()
        until_gone(peer)

    server.next_connections(dropping, closing, at_last)
    code, out, err = start(*WAIT).finish()
    assert (code, "Mend the test" in out) == (0, True)
    assert (err.count("server lost"), err.count("the server is back")) == (1, 1)
    assert [(hello["connection"], hello["joined"]) for hello in hellos] == [(1, False), (2, True), (3, True)]
    assert len({hello["incarnation"] for hello in hellos}) == 1


def test_the_lease_is_renewed_as_often_as_the_welcome_says(server: FakeServer, start: Start) -> None:
    renewals: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome(renew_seconds=0.05)
        for _ in range(3):
            renewals.append(peer.expect("renew"))
            peer.send({"type": "renewed", "answer": "resume" if len(renewals) == 2 else "ok", "lease_seconds": 90})
        peer.send({"type": "superseded", "message": "enough"})
        until_gone(peer)

    server.next_connections(script)
    code, _, err = start(*WAIT).finish()
    assert (code, len(renewals), err.count("had been declared dead")) == (6, 3, 1)


def test_a_reader_that_went_away_leaves_the_task_to_others(server: FakeServer, start: Start) -> None:
    """The program that would read the task died: taking one would strand it."""
    said: list[dict[str, object]] = []
    reader_is_gone = threading.Event()

    def script(peer: Peer) -> None:
        peer.welcome()
        reader_is_gone.wait(10)
        peer.send(WITHDRAWN_OFFER)
        said.append(peer.receive())
        peer.send({"type": "left"})

    server.next_connections(script)
    process = start(*WAIT)
    process.wait_until_waiting()
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    reader_is_gone.set()
    assert process.wait(30) == 1
    assert said == [{"type": "leave"}]


def test_a_task_that_cannot_be_printed_is_given_back_and_named(server: FakeServer, start: Start) -> None:
    said: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        peer.welcome()
        peer.hand_over()
        said.append(peer.receive())
        peer.send({"type": "left"})

    server.next_connections(script)
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = start(*WAIT, stdout=full)
        code, _, err = process.finish()
    assert (code, said) == (1, [{"type": "leave"}])
    assert "task 12 was received but could not be printed" in err
    assert RESUME in err


def test_a_stopped_client_hears_before_it_judges_the_server(server: FakeServer, start: Start) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        os.kill(process.pid, signal.SIGSTOP)
        peer.send(WITHDRAWN_OFFER)
        os.kill(process.pid, signal.SIGCONT)
        peer.expect("received")
        peer.send({"type": "confirmed", "claim": "c_old"})
        until_gone(peer)

    server.next_connections(script)
    process = start(*WAIT)
    assert process.finish()[0] == 0


@pytest.mark.parametrize("status", [401, 403])
def test_an_unknown_token_exits_3_at_once(server: FakeServer, start: Start, status: int) -> None:
    server.serve_socket = lambda handler: handler.send_error(status)  # type: ignore[method-assign]
    code, out, err = start(*WAIT).finish()
    assert (code, out) == (3, "")
    assert "sign in again" in err


def test_waiting_loads_neither_django_nor_the_slow_parts_of_the_standard_library(server: FakeServer, surroundings: dict[str, str]) -> None:
    def script(peer: Peer) -> None:
        peer.welcome()
        peer.hand_over()
        until_gone(peer)

    server.next_connections(script)
    watched = "import sys; from chatroom.client.main import main; code = main(); sys.stderr.write(' '.join(sys.modules)); sys.exit(code)"
    process = subprocess.run(
        [sys.executable, "-c", watched, *WAIT], cwd=PROJECT, env=surroundings, capture_output=True, text=True, timeout=30, check=True
    )
    loaded = set(process.stderr.split())
    assert not loaded & {"django", "http.client", "ssl", "email", "dataclasses", "inspect", "asyncio"}


def test_help_names_every_option_and_a_missing_role_is_a_usage_error(start: Start) -> None:
    assert start(*WAIT[:2]).finish()[0] == 2
    code, out, _ = start("wait_for_task", "--help").finish()
    assert code == 0
    for option in ("--role", "--timeout", "--server", "--token", "--json"):
        assert option in out


def test_the_environment_fills_in_room_and_role(server: FakeServer, start: Start) -> None:
    hellos: list[dict[str, object]] = []

    def script(peer: Peer) -> None:
        hellos.append(peer.expect("hello"))
        peer.send({**WELCOME, "renew_seconds": 30})
        peer.hand_over()
        until_gone(peer)

    server.next_connections(script)
    assert start("wait_for_task", env={"CHATROOM_ROOM": "demo", "CHATROOM_ROLE": "builder"}).finish()[0] == 0
    assert (hellos[0]["room"], hellos[0]["role"]) == ("demo", "builder")
