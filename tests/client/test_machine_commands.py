from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.fake_server import FakeServer

Call = Callable[..., tuple[int, str, str]]
BUILDER = "rooms/demo/agents/builder"


def command(state: str, *, outcome: str = "", act: str = "start_agent") -> dict[str, Any]:
    return {"command": 88, "act": act, "state": state, "machine": "laptop-7", "role": "builder", "generation": 3, "outcome": outcome}


def refusal(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "current": "ready", "allowed": []}}


def placed(status: str = "offline", *, kind: str = "remote", machine: str | None = "laptop-7") -> dict[str, Any]:
    return {"role": "builder", "kind": kind, "status": status, "machine": machine, "harness": "codex" if machine else None}


@pytest.mark.parametrize(
    ("name", "act"), [("start_agent", "start"), ("stop_agent", "stop"), ("restart_agent", "restart"), ("abort_run", "abort")]
)
def test_an_act_on_an_agent_answers_the_command_at_once(server: FakeServer, call: Call, name: str, act: str) -> None:
    answer = command("pending", act=name)
    server.routes[f"POST {BUILDER}/{act}"] = [(202, answer)]
    code, out, _ = call(name, "demo", "--role", "builder", "--json")
    assert (code, json.loads(out)) == (0, answer)


@pytest.mark.scenario(95)
def test_a_start_of_a_running_agent_says_so_and_ends_well(server: FakeServer, call: Call) -> None:
    server.routes[f"POST {BUILDER}/start"] = [(202, command("completed", outcome="builder is already running"))]
    code, out, _ = call("start_agent", "demo", "--role", "builder", "--wait")
    assert (code, out) == (0, "start_agent builder on laptop-7 (command 88) is completed: builder is already running\n")


def test_waiting_for_a_start_asks_until_it_is_over(server: FakeServer, call: Call) -> None:
    server.routes[f"POST {BUILDER}/start"] = [(202, command("pending"))]
    steps = [command("pending"), command("dispatched"), command("completed", outcome="builder is running")]
    server.routes["GET commands/88"] = [(200, step) for step in steps]
    code, out, err = call("start_agent", "demo", "--role", "builder", "--wait", "--json")
    assert (code, json.loads(out)) == (0, steps[-1])
    assert [line.partition(" is ")[2] for line in err.splitlines()] == ["pending; waiting for its end…", "dispatched; waiting for its end…"]


@pytest.mark.parametrize("state", ["failed", "cancelled", "expired"])
def test_a_start_that_fails_while_one_waits_exits_9_with_the_reason(server: FakeServer, call: Call, state: str) -> None:
    reason = "3 of 3 attempts failed; the last: ended with exit code 3"
    server.routes[f"POST {BUILDER}/start"] = [(202, command("dispatched"))]
    server.routes["GET commands/88"] = [(200, command(state, outcome=reason))]
    code, out, err = call("start_agent", "demo", "--role", "builder", "--wait")
    assert (code, out) == (9, "")
    assert err.endswith(f"start_agent: {state}: {reason}\n")
    code, out, _ = call("start_agent", "demo", "--role", "builder", "--wait", "--json")
    assert (code, json.loads(out)["error"]) == (9, {"code": "command_failed", "message": reason, "current": state, "allowed": []})


def test_waiting_outlasts_an_outage_of_the_server(server: FakeServer, call: Call) -> None:
    server.routes[f"POST {BUILDER}/stop"] = [(202, command("dispatched", act="stop_agent"))]
    away = {"error": {"code": "unavailable", "message": "the database is away"}}
    ended = command("completed", act="stop_agent", outcome="no process is left")
    server.routes["GET commands/88"] = [(503, away, {"Retry-After": "0.1"}), (503, away, {"Retry-After": "0.1"}), (200, ended)]
    code, _, err = call("stop_agent", "demo", "--role", "builder", "--wait", env={"CHATROOM_PATIENCE": "0.05"})
    assert code == 0
    assert "the server is back" in err


def test_an_act_on_a_custom_agent_is_refused_with_the_servers_words(server: FakeServer, call: Call) -> None:
    words = "builder is a custom agent: a person starts and ends it; configure_agent makes it remote"
    server.routes[f"POST {BUILDER}/start"] = [(403, refusal("not_allowed", words))]
    assert call("start_agent", "demo", "--role", "builder") == (3, "", f"start_agent: {words}\n")


@pytest.mark.scenario(60)
def test_configuring_sends_only_what_was_given(server: FakeServer, call: Call) -> None:
    server.routes[f"PUT {BUILDER}"] = [(200, placed())]
    words = ("--kind", "remote", "--machine", "laptop-7", "--harness", "codex", "--dir", "/src", "--mode", "loop")
    code, out, _ = call("configure_agent", "demo", "--role", "builder", *words)
    assert (code, out) == (0, "builder is remote on laptop-7 (codex), and offline\n")
    code, *_ = call("configure_agent", "demo", "--role", "builder", "--model", "")
    assert code == 0
    first, second = ({name: value for name, value in body.items() if name != "?"} for body in server.asked(f"PUT {BUILDER}"))
    assert first == {
        "kind": "remote", "machine": "laptop-7", "harness": "codex", "directory": "/src", "mode": "loop", "force": False,
    }  # fmt: skip
    assert second == {"model": "", "force": False}


def test_a_living_agent_is_stopped_before_it_moves_and_started_where_it_lives_now(server: FakeServer, call: Call) -> None:
    lives = refusal("process_lives", "builder has a process on laptop-7 (running): stop it first")
    server.routes[f"PUT {BUILDER}"] = [(409, lives), (200, placed(machine="tower"))]
    server.routes[f"POST {BUILDER}/stop"] = [(202, command("dispatched", act="stop_agent"))]
    server.routes["GET machines/laptop-7"] = [(200, {"status": "connected"})]
    server.routes["GET commands/88"] = [(200, command("completed", act="stop_agent"))]
    server.routes[f"POST {BUILDER}/start"] = [(202, command("pending"))]
    code, out, err = call("configure_agent", "demo", "--role", "builder", "--machine", "tower")
    assert (code, out) == (0, "builder is remote on tower (codex), and restarting\n")
    assert "stopping it first" in err
    asked = [route for route, _, _ in server.requests]
    asked.remove("GET machines/laptop-7")
    assert asked == [f"PUT {BUILDER}", f"POST {BUILDER}/stop", "GET commands/88", f"PUT {BUILDER}", f"POST {BUILDER}/start"]


@pytest.mark.parametrize("force", [False, True])
def test_a_machine_that_goes_away_while_its_agent_is_stopped_is_not_waited_for(server: FakeServer, call: Call, force: bool) -> None:
    words = "builder has a process on laptop-7 (aborting), and laptop-7 is away: --force gives that run up"
    second = (200, placed(kind="custom", machine=None)) if force else (409, refusal("wrong_state", words))
    server.routes[f"PUT {BUILDER}"] = [(409, refusal("process_lives", "it lives")), second]
    server.routes[f"POST {BUILDER}/stop"] = [(202, command("dispatched", act="stop_agent"))]
    server.routes["GET commands/88"] = [(200, command("dispatched", act="stop_agent"))]
    server.routes["GET machines/laptop-7"] = [(200, {"status": status}) for status in ("connected", "unresponsive", "disconnected")]
    code, out, err = call("configure_agent", "demo", "--role", "builder", "--kind", "custom", *(["--force"] if force else []))
    assert (code, out) == ((0, "builder is custom, and offline\n") if force else (5, ""))
    assert force or err.endswith(f"configure_agent: {words}\n")


def test_an_agent_made_custom_is_not_started(server: FakeServer, call: Call) -> None:
    server.routes[f"PUT {BUILDER}"] = [(409, refusal("process_lives", "it lives")), (200, placed(kind="custom", machine=None))]
    server.routes[f"POST {BUILDER}/stop"] = [(202, command("completed", act="stop_agent"))]
    code, out, _ = call("configure_agent", "demo", "--role", "builder", "--kind", "custom")
    assert (code, out) == (0, "builder is custom, and offline\n")


def test_an_agent_on_a_machine_that_is_away_is_not_moved_without_force(server: FakeServer, call: Call) -> None:
    words = "builder has a process on laptop-7 (running), and laptop-7 is away: --force gives that run up"
    server.routes[f"PUT {BUILDER}"] = [(409, refusal("wrong_state", words))]
    assert call("configure_agent", "demo", "--role", "builder", "--kind", "custom") == (5, "", f"configure_agent: {words}\n")
    assert len(server.requests) == 1


def test_an_agent_that_cannot_be_stopped_stays_where_it_is(server: FakeServer, call: Call) -> None:
    server.routes[f"PUT {BUILDER}"] = [(409, refusal("process_lives", "it lives"))]
    server.routes[f"POST {BUILDER}/stop"] = [(202, command("cancelled", act="stop_agent", outcome="restarted by bob"))]
    code, _, err = call("configure_agent", "demo", "--role", "builder", "--machine", "tower")
    assert code == 9
    assert err.endswith("builder could not be stopped: restarted by bob\n")
    assert len(server.asked(f"PUT {BUILDER}")) == 1


def test_aborting_everything_tells_each_run(server: FakeServer, call: Call) -> None:
    server.routes["POST commands/abort_runs"] = [(200, {"commands": [command("pending", act="abort_run")]}), (200, {"commands": []})]
    assert call("abort_runs")[1] == "abort_run builder on laptop-7 (command 88) is pending\n"
    assert call("abort_runs")[1] == "no run to abort\n"
