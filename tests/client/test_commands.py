from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import Started
from tests.client.fake_server import FakeServer

Call = Callable[..., tuple[int, str, str]]
CLAIM = "POST rooms/demo/claims/c_9f"


def error(code: str, message: str = "because", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "current": None, "allowed": [], **more}}


# --- the holder of a claim


@pytest.mark.parametrize(
    ("words", "act", "body", "key"),
    [
        (["task_started"], "start", {}, "start:c_9f"),
        (["task_complete", "--text", "done"], "complete", {"text": "done"}, "complete:c_9f"),
        (["fail_task", "--text", "no"], "fail", {"text": "no"}, "fail:c_9f"),
        (["handoff", "--next-role", "reviewer", "--text", "look"], "handoff", {"next_role": "reviewer", "text": "look"}, "handoff:c_9f"),
    ],
)
def test_an_act_on_a_claim_carries_a_key_made_of_both(
    server: FakeServer, call: Call, words: list[str], act: str, body: dict[str, str], key: str
) -> None:
    answer = {"task": 12, "status": "completed", "message": 99, "next": None}
    server.routes[f"{CLAIM}/{act}"] = [(200, answer)]
    code, out, _ = call(words[0], "demo", "--claim", "c_9f", *words[1:], "--json")
    assert (code, json.loads(out)) == (0, answer)
    ((_, headers, sent),) = server.requests
    assert (headers["Idempotency-Key"], {name: value for name, value in sent.items() if name != "?"}) == (key, body)
    assert headers["Authorization"] == "Bearer t0ken"


def test_progress_may_be_reported_twice_with_the_same_words(server: FakeServer, call: Call) -> None:
    server.routes[f"{CLAIM}/progress"] = [(200, {"message": 98, "task": 12})]
    for _ in range(2):
        assert call("report_progress", "demo", "--claim", "c_9f", "--text", "half")[0] == 0
    keys = {headers["Idempotency-Key"] for _, headers, _ in server.requests}
    assert len(keys) == 2


@pytest.mark.scenario(28)
def test_a_late_completion_exits_5_with_the_servers_words(server: FakeServer, call: Call) -> None:
    words = "task 12 was reassigned: attempt 1 is yours, attempt 2 is with builder on laptop-7"
    server.routes[f"{CLAIM}/complete"] = [(409, error("outdated_claim", words))]
    code, out, err = call("task_complete", "demo", "--claim", "c_9f", "--text", "late")
    assert (code, out) == (5, "")
    assert err == f"task_complete: {words}\n"


def test_with_json_an_error_goes_to_standard_output_as_the_server_gave_it(server: FakeServer, call: Call) -> None:
    given = error("no_such_role", "no role tester", current="x", allowed=["builder", "user"])
    server.routes[f"{CLAIM}/handoff"] = [(404, given)]
    code, out, err = call("handoff", "demo", "--claim", "c_9f", "--next-role", "tester", "--text", "x", "--json")
    assert (code, json.loads(out), err) == (4, given, "")


def test_text_comes_from_standard_input_from_a_file_or_with_a_leading_dash(server: FakeServer, call: Call, tmp_path: Path) -> None:
    server.routes[f"{CLAIM}/progress"] = [(200, {"message": 98, "task": 12})]
    file = tmp_path / "text"
    file.write_bytes(b"from a file \xff")
    say = ("report_progress", "demo", "--claim", "c_9f")
    assert call(*say, "--text", "-", input_text="from stdin ✓\n")[0] == 0
    assert call(*say, "--file", str(file))[0] == 0
    assert call(*say, "--text", "--- a/x\n+++ b/x")[0] == 0
    assert [body["text"] for body in server.asked(f"{CLAIM}/progress")] == ["from stdin ✓\n", "from a file �", "--- a/x\n+++ b/x"]


@pytest.mark.parametrize(
    "words",
    [
        ["task_complete", "demo", "--claim", "c_9f"],
        ["task_complete", "demo", "--text", "x"],
        ["task_complete", "--claim", "c_9f", "--text", "x"],
        ["task_complete", "demo", "--claim", "c_9f", "--text", "x", "--file", "y"],
        ["task_complete", "demo", "--claim", "c_9f", "--file", "/nowhere"],
        ["rooms", "--unknown"],
        ["backlog", "move", "demo"],
        ["backlog", "add", "demo", "5", "--text", "x"],
        ["backlog", "list", "demo", "--task", "5"],
        ["send_message", "demo", "--te", "abbreviated"],
    ],
)
def test_usage_errors_exit_2_without_a_call(server: FakeServer, call: Call, words: list[str]) -> None:
    code, out, err = call(*words)
    assert (code, out, server.requests) == (2, "", [])
    assert err.startswith(f"{words[0]}: ")
    code, out, _ = call(*words, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "usage")


# --- outages


@pytest.mark.parametrize(("status", "code_said"), [(503, "unavailable"), (429, "too_many")])
def test_a_call_is_repeated_with_one_key_until_the_server_serves_it(server: FakeServer, call: Call, status: int, code_said: str) -> None:
    unavailable = (status, error(code_said), {"Retry-After": "0.05"})
    server.routes["POST rooms/demo/messages"] = [unavailable, unavailable, (201, {"message": 97, "task": 12, "status": "pending"})]
    code, out, err = call("send_message", "demo", "--text", "hello")
    assert (code, out) == (0, "message 97: task 12 is pending\n")
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.requests}) == 1
    assert (err.count("server lost"), err.count("the server is back")) == (1, 1)


@pytest.mark.parametrize("status", [429, 503])
def test_patience_ends_with_exit_8(server: FakeServer, call: Call, status: int) -> None:
    server.routes["GET rooms"] = [(status, error("unavailable", "the database is away"), {"Retry-After": "3600"})]
    code, _, err = call("rooms")
    assert code == 8
    assert "the database is away" in err


def test_no_server_at_all_exits_8(server: FakeServer, call: Call) -> None:
    server.close()
    assert call("rooms", env={"CHATROOM_PATIENCE": "0.2"})[0] == 8


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CHATROOM_PATIENCE", "x", ("rooms",)),
        ("CHATROOM_PATIENCE", "nan", ("rooms",)),
        ("CHATROOM_RECONNECT_WITHIN", "soon", ("wait_for_task", "demo", "--role", "builder")),
        ("CHATROOM_RECONNECT_PAUSE", "-1", ("wait_for_task", "demo", "--role", "builder")),
    ],
)
def test_a_number_that_is_none_ends_the_start_with_what_was_found(
    name: str, value: str, words: tuple[str, ...], server: FakeServer, call: Call
) -> None:
    server.routes["GET rooms"] = [(503, error("unavailable", "the database is away"))]
    code, _, err = call(*words, env={name: value})
    assert code == 2
    assert f"{name}={value}: expected seconds, for example" in err
    assert server.requests == []


def test_something_else_at_that_address_is_said(server: FakeServer, call: Call) -> None:
    server.routes["GET rooms"] = [(301, None, {"Location": "https://elsewhere/"})]
    code, _, err = call("rooms")
    assert code == 1
    assert "https://elsewhere/" in err


def test_a_crash_of_the_server_is_not_repeated(server: FakeServer, call: Call) -> None:
    server.routes["GET rooms"] = [(500, error("internal", "oops"))]
    assert call("rooms")[0] == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "code", "exit_code"), [(401, "not_signed_in", 3), (403, "not_allowed", 3), (404, "no_such_room", 4)])
def test_refusals_exit_by_their_code(server: FakeServer, call: Call, status: int, code: str, exit_code: int) -> None:
    server.routes["GET rooms/demo"] = [(status, error(code))]
    assert call("room_status", "demo")[0] == exit_code


def test_nobody_signed_in_exits_3_and_names_the_command(call: Call) -> None:
    code, _, err = call("rooms", env={"CHATROOM_TOKEN": ""})
    assert code == 3
    assert "-m chatroom.client login --server" in err


# --- people


def test_login_compares_a_code_and_the_token_is_used_from_then_on(server: FakeServer, call: Call, tmp_path: Path) -> None:
    grant = {
        "device_code": "secret", "user_code": "BDFG-HJKL", "verification_url": "http://x/device",
        "verification_url_complete": "http://x/device?code=BDFG-HJKL", "expires_in": 600, "interval": 0.01,
    }  # fmt: skip
    server.routes["POST device"] = [(200, grant)]
    server.routes["POST device/token"] = [(400, error("authorization_pending")), (200, {"token": "fresh", "name": "alice"})]
    server.routes["GET whoami"] = [(200, {"kind": "person", "name": "alice", "room": None, "role": None})]
    server.routes["POST logout"] = [(204, None)]
    signed_out = {"CHATROOM_TOKEN": "", "CHATROOM_SERVER": ""}
    code, out, err = call("login", "--server", server.url, "--name", "laptop", env=signed_out)
    assert code == 0
    assert "BDFG-HJKL" in err
    assert "signed in to" in out
    assert server.asked("POST device")[0]["client"] == "laptop"
    assert call("whoami", env=signed_out)[1] == f"alice (person) on {server.url}\n"
    assert server.requests[-1][1]["Authorization"] == "Bearer fresh"
    assert call("logout", env=signed_out)[0] == 0
    assert json.loads((tmp_path / "config/chatroom/credentials.json").read_text())["servers"] == {}
    assert call("whoami", "--server", server.url, env=signed_out)[0] == 3


@pytest.mark.parametrize("ended", ["expired_token", "access_denied"])
def test_a_denied_or_expired_sign_in_exits_3(server: FakeServer, call: Call, ended: str) -> None:
    grant = {"device_code": "s", "user_code": "B", "verification_url_complete": "u", "expires_in": 600, "interval": 0.01}
    server.routes["POST device"] = [(200, grant)]
    server.routes["POST device/token"] = [(400, error(ended))]
    assert call("login", env={"CHATROOM_TOKEN": ""})[0] == 3


@pytest.mark.parametrize(("team", "sent"), [("pair", "pair"), ("planner, builder", ["planner", "builder"])])
def test_create_room_takes_a_team_by_name_or_by_its_roles(server: FakeServer, call: Call, team: str, sent: object) -> None:
    answer = {"id": 4, "slug": "demo-2", "url": "http://x/rooms/demo-2/"}
    server.routes["POST rooms"] = [(201, answer)]
    code, out, _ = call("create_room", "Demo 2", "--team", team, "--fail-fast", "--json")
    assert (code, json.loads(out)) == (0, answer)
    assert server.asked("POST rooms") == [{"name": "Demo 2", "team": sent, "fail_fast": True, "?": ""}]


STATUS = {
    "room": {"id": 1, "slug": "demo", "name": "Demo"},
    "agents": [
        {"role": "builder", "kind": "custom", "status": "working", "error_message": "", "machine": None, "task": 12, "waiting": False,
         "last_seen_at": "2026-11-20T14:02:40Z", "lease_expires_at": "2026-11-20T14:03:10Z", "desired_state": None, "run": None},
        {"role": "qa", "kind": "custom", "status": "dead_failed_revive", "error_message": "gone\x1b[2J", "machine": None, "task": None,
         "waiting": False, "last_seen_at": None, "lease_expires_at": None, "desired_state": None, "run": None},
    ],
    "tasks": [{"id": 12, "status": "in_progress", "assigned_role": "builder", "attempt": 1, "holder": "builder"}],
    "machines": [],
}  # fmt: skip


def test_room_status_is_an_aligned_table_without_control_sequences(server: FakeServer, call: Call) -> None:
    server.routes["GET rooms/demo"] = [(200, STATUS)]
    code, out, _ = call("room_status", "demo")
    assert code == 0
    lines = out.splitlines()
    assert lines[2].split() == ["ROLE", "KIND", "STATUS", "TASK", "MACHINE", "SEEN", "NOTE"]
    assert lines[3].split() == ["builder", "custom", "WORKING", "12", "-", "14:02:40", "-"]
    assert "DEAD (UNRECOVERABLE)" in lines[4]
    assert "\x1b" not in out
    assert json.loads(call("room_status", "demo", "--json")[1]) == STATUS


EVENTS = [
    {"id": 811, "time": "2026-11-20T14:02:39Z", "subject": "message", "subject_id": 97, "role": "", "trigger": "post",
     "name": "message.post", "from": "", "to": "", "actor": "alice", "reason": "", "data": {"message": 97}},
    {"id": 812, "time": "2026-11-20T14:02:40Z", "subject": "task", "subject_id": 12, "role": "builder", "trigger": "claim_task",
     "name": "task.claim_task", "from": "pending", "to": "acknowledged", "actor": "builder", "reason": "", "data": {}},
]  # fmt: skip
MESSAGES = [
    {"id": 97, "kind": "message", "from": "alice", "to": None, "text": "two\nlines\x07", "task": 12, "created_at": "2026-11-20T14:02:39Z"}
]


def serve_room(server: FakeServer) -> None:
    def events(_body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        query = server.requests[-1][2]["?"]
        later = [] if "after=" not in query else [{**EVENTS[1], "id": 813, "to": "failed"}]
        return 200, {"events": later if "after=812" in query else EVENTS if "after=" not in query else [], "last": 813 if later else 812}

    server.routes["GET rooms/demo/events"] = events
    server.routes["GET rooms/demo/messages"] = [(200, {"messages": MESSAGES, "last": 97})]


def test_room_log_shows_messages_and_moves(server: FakeServer, call: Call) -> None:
    serve_room(server)
    code, out, _ = call("room_log", "demo")
    assert code == 0
    assert out.splitlines() == [
        "14:02:39  alice → all: two",
        "          lines",
        "14:02:40  task 12 pending → acknowledged (task.claim_task by builder)",
    ]
    shown = json.loads(call("room_log", "demo", "--json")[1])
    assert [event["message"] and event["message"]["id"] for event in shown["events"]] == [97, None]


def test_room_log_follows_until_it_is_interrupted(server: FakeServer, start: Callable[..., Started]) -> None:
    serve_room(server)
    process = start("room_log", "demo", "--follow", "--json")
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["id"] for _ in range(3)] == [811, 812, 813]
    process.send_signal(signal.SIGINT)
    assert process.finish()[0] == 130


def test_room_status_watches_until_it_is_interrupted(server: FakeServer, start: Callable[..., Started]) -> None:
    serve_room(server)
    changed = json.loads(json.dumps(STATUS))
    changed["agents"][0]["status"] = "ready"
    server.routes["GET rooms/demo"] = [(200, STATUS), (200, changed)]
    process = start("room_status", "demo", "--watch", "--json")
    assert process.stdout is not None
    assert [json.loads(process.stdout.readline())["agents"][0]["status"] for _ in range(2)] == ["working", "ready"]
    process.send_signal(signal.SIGINT)
    assert process.finish()[0] == 130


def chain(state: str, **more: Any) -> dict[str, Any]:
    task = {"id": 12, "status": "completed", "assigned_role": "builder", "attempt": 1, "holder": None}
    return {**task, "chain_tasks": [task], "chain_state": state, "chain_reason": None, **more}


SENT = {"message": 97, "task": 12, "status": "pending"}
VERDICT = {**MESSAGES[0], "id": 99, "from": "reviewer", "to": "user", "text": "all tests pass"}


@pytest.mark.scenario(99)
def test_send_message_waits_for_the_end_and_prints_what_came_to_the_user(server: FakeServer, call: Call) -> None:
    serve_room(server)
    server.routes["POST rooms/demo/messages"] = [(201, SENT)]
    server.routes["GET rooms/demo/tasks/12"] = [(200, chain("open")), (200, chain("done"))]
    server.routes["GET rooms/demo/messages"] = [(200, {"messages": [VERDICT], "last": 99}), (200, {"messages": [], "last": 99})]
    code, out, err = call("send_message", "demo", "--text", "go", "--wait")
    assert (code, out) == (0, "all tests pass\n")
    assert "task 12 is pending" in err


@pytest.mark.scenario(99)
def test_send_message_exits_9_with_the_reason_when_the_work_failed(server: FakeServer, call: Call) -> None:
    serve_room(server)
    server.routes["POST rooms/demo/messages"] = [(201, SENT)]
    server.routes["GET rooms/demo/tasks/12"] = [(200, chain("failed", chain_reason="builder is unrecoverable"))]
    server.routes["GET rooms/demo/messages"] = [(200, {"messages": [], "last": 97})]
    code, out, err = call("send_message", "demo", "--text", "go", "--wait", "--json")
    assert (code, json.loads(out)["error"]["message"]) == (9, "builder is unrecoverable")
    assert "builder is unrecoverable" in err


@pytest.mark.parametrize(
    ("words", "route", "reason"),
    [
        (["tasks", "demo", "cancel", "3", "--reason", "no need"], "POST rooms/demo/tasks/3/cancel", "no need"),
        (["tasks", "demo", "force-complete", "3"], "POST rooms/demo/tasks/3/force_complete", ""),
        (["backlog", "move", "demo", "3"], "POST rooms/demo/tasks/3/move_to_queue", ""),
        (["backlog", "approve", "demo", "--task", "3"], "POST rooms/demo/tasks/3/approve", ""),
        (["backlog", "send-back", "demo", "3", "--reason", "tests"], "POST rooms/demo/tasks/3/send_back", "tests"),
        (["backlog", "close", "demo", "3", "--text", "obsolete"], "POST rooms/demo/tasks/3/cancel", "obsolete"),
    ],
)
def test_people_move_tasks_and_backlog_items(server: FakeServer, call: Call, words: list[str], route: str, reason: str) -> None:
    server.routes[route] = [(200, {"task": {"id": 3, "status": "closed"}})]
    assert call(*words)[:2] == (0, "task 3 is closed\n")
    without_room = [word for word in words if word != "demo"]
    assert call(*without_room, env={"CHATROOM_ROOM": "demo"})[0] == 0
    assert [body["reason"] for body in server.asked(route)] == [reason, reason]


def test_backlog_adds_and_lists(server: FakeServer, call: Call) -> None:
    task = {"id": 3, "status": "backlog", "assigned_role": "builder", "attempt": 0, "holder": None, "title": "later", "position": None}
    server.routes["POST rooms/demo/backlog"] = [(201, {"task": task})]
    server.routes["GET rooms/demo/tasks"] = [(200, {"tasks": [task]}), (200, {"tasks": []})]
    assert call("backlog", "add", "demo", "--text", "later", "--priority", "2")[0] == 0
    assert server.asked("POST rooms/demo/backlog") == [{"text": "later", "to": None, "priority": 2, "?": ""}]
    code, out, _ = call("backlog", "list", "demo")
    assert (code, "later" in out) == (0, True)


def test_a_closed_standard_output_ends_quietly_with_1(server: FakeServer, start: Callable[..., Started]) -> None:
    nobody_reads = threading.Event()

    def rooms(_body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nobody_reads.wait(30)
        return 200, {"rooms": []}

    server.routes["GET rooms"] = rooms
    process = start("rooms")
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    nobody_reads.set()
    _, err = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in err) == (1, False)


# --- beside Django


def test_every_command_is_known_to_django_and_can_be_called_from_code(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from io import StringIO

    from django.core.management import CommandError, call_command, get_commands

    from chatroom.client.main import COMMANDS

    assert set(COMMANDS) <= set(get_commands())
    monkeypatch.setenv("CHATROOM_SERVER", server.url)
    monkeypatch.setenv("CHATROOM_TOKEN", "t")
    server.routes["GET rooms"] = [(200, {"rooms": [{"id": 1, "slug": "demo", "name": "Demo"}]})]
    server.routes["GET rooms/none"] = [(404, error("no_such_room", "no room none"))]
    out = StringIO()
    call_command("rooms", "--json", stdout=out)
    assert json.loads(out.getvalue())["rooms"][0]["slug"] == "demo"
    with pytest.raises(CommandError, match="no room none") as refused:
        call_command("room_status", "none")
    assert refused.value.returncode == 4
