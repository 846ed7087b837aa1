"""The main path: what a person sends becomes work, agents in terminals hand it on, the room tells the truth."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.processes.acts import act, agent, claim_of, events, messages, new_room, room_status, send, start_waiting, take, task
from tests.processes.conftest import MakeProgram
from tests.processes.program import MANAGE, Command, Program, free_port, wait_until

HERE = Path(__file__).parent
CHAIN = ["create", "claim_task", "deliver", "start_task", "complete_task"]


@pytest.fixture
def room(server: Program, request: pytest.FixtureRequest) -> str:
    return new_room(server, request.node.name.replace("_", " ")[:60])


@pytest.mark.scenario(16)
def test_a_message_becomes_one_task_of_the_entry_role_and_reaches_its_waiter(server: Program, room: str) -> None:
    waiting = start_waiting(server, room, "builder", "--json")
    sent = server.run_json("send_message", room, "--text", "Please build")
    assert waiting.wait() == 0
    delivered = json.loads(waiting.stdout)
    assert delivered["task"] == sent["task"]
    assert (delivered["role"], delivered["text"], delivered["from"], delivered["attempt"]) == ("builder", "Please build", "owner", 1)
    assert len(server.api("GET", f"rooms/{room}/tasks").json()["tasks"]) == 1
    found = task(server, room, sent["task"])
    assert (found["assigned_role"], found["status"], found["holder"]) == ("builder", "acknowledged", "builder")


@pytest.mark.scenario(16)
def test_work_that_waits_for_an_agent_is_delivered_when_one_comes(server: Program, room: str) -> None:
    sent = server.run_json("send_message", room, "--text", "Nobody is here yet")
    assert sent["status"] == "pending"
    assert agent(server, room)["status"] == "offline"
    late = server.run_json("wait_for_task", room, "--role", "builder")
    assert late["task"] == sent["task"]


def test_the_chain_from_user_over_builder_and_reviewer_back_to_the_user(server: Program, room: str) -> None:
    builder, reviewer = start_waiting(server, room, "builder"), start_waiting(server, room, "reviewer")
    server.run_json("send_message", room, "--text", "Fix the typo")
    assert builder.wait() == 0
    claim = claim_of(builder)
    assert server.run_json("task_started", room, "--claim", claim)["status"] == "in_progress"
    server.run_json("report_progress", room, "--claim", claim, "--text", "half way")
    assert server.run_json("handoff", room, "--claim", claim, "--next-role", "reviewer", "--text", "fixed")["next"]["role"] == "reviewer"

    assert reviewer.wait() == 0
    assert "Fix the typo" in reviewer.stdout, "the reviewer reads what was said before"
    claim = claim_of(reviewer)
    server.run_json("task_started", room, "--claim", claim)
    assert server.run_json("handoff", room, "--claim", claim, "--next-role", "user", "--text", "well done")["next"] is None

    said = [(item["kind"], item["from"], item["to"] or "", item["text"]) for item in messages(server, room)]
    assert said == [
        ("chat", "owner", "", "Fix the typo"),
        ("progress", "builder", "", "half way"),
        ("handoff", "builder", "reviewer", "fixed"),
        ("result", "reviewer", "user", "well done"),
    ]
    tasks = sorted(server.api("GET", f"rooms/{room}/tasks").json()["tasks"], key=lambda item: item["id"])
    assert [(item["assigned_role"], item["status"], item["attempt"]) for item in tasks] == [
        ("builder", "completed", 1),
        ("reviewer", "completed", 1),
    ]
    for item in tasks:
        assert [event["trigger"] for event in events(server, room, subject="task", subject_id=item["id"])] == CHAIN
    assert {item["status"] for item in room_status(server, room)["agents"]} == {"ready"}


@pytest.mark.scenario(99)
def test_send_and_wait_ends_with_0_and_the_result_when_the_chain_ends_well(server: Program, room: str) -> None:
    waiting = server.start_command("send_message", room, "--text", "go", "--wait")
    claim = take(server, room)
    act(server, room, claim, "handoff", next_role="reviewer", text="built")
    review = take(server, room, "reviewer")
    assert waiting.returncode is None
    act(server, room, review, "complete", text="the verdict")
    assert waiting.wait() == 0
    assert waiting.stdout.strip() == "the verdict"


@pytest.mark.scenario(99)
def test_send_and_wait_ends_with_9_and_the_reason_when_a_task_fails(server: Program, room: str) -> None:
    waiting = server.start_command("send_message", room, "--text", "go", "--wait", "--json")
    claim = take(server, room)
    assert server.run("fail_task", room, "--claim", claim, "--text", "there is no compiler").returncode == 0
    assert waiting.wait() == 9
    answer = json.loads(waiting.stdout)
    assert answer["chain_state"] == "failed"
    assert "there is no compiler" in answer["error"]["message"]


@pytest.mark.scenario(100)
@pytest.mark.parametrize(
    ("command", "words"),
    [("handoff", ["--next-role", "reviewer", "--text", "done"]), ("task_complete", ["--text", "done"]), ("fail_task", ["--text", "no"])],
)
def test_the_same_command_again_gets_the_same_answer_and_has_one_effect(server: Program, command: str, words: list[str]) -> None:
    room = new_room(server, f"Again {command}")
    send(server, room, "do it")
    claim = take(server, room)
    first = server.run(command, room, "--claim", claim, *words, "--json")
    said, happened = messages(server, room), events(server, room)
    again = server.run(command, room, "--claim", claim, *words, "--json")
    assert (first.returncode, again.returncode) == (0, 0), again.output
    assert json.loads(again.stdout) == json.loads(first.stdout)
    assert (messages(server, room), events(server, room)) == (said, happened)


@pytest.mark.scenario(100)
def test_the_same_command_with_another_text_is_refused(server: Program, room: str) -> None:
    send(server, room, "do it")
    claim = take(server, room)
    assert server.run("task_complete", room, "--claim", claim, "--text", "one").returncode == 0
    other = server.run("task_complete", room, "--claim", claim, "--text", "two", "--json")
    assert other.returncode == 5
    assert json.loads(other.stdout)["error"]["code"] == "key_reused"


def test_a_shell_script_plays_a_role_with_nothing_but_the_commands(server: Program, room: str, tmp_path: Path) -> None:
    reviewer = start_shell_agent(server, room, "reviewer", "user", folder=tmp_path)
    builder = start_shell_agent(server, room, "builder", "reviewer", folder=tmp_path)
    for number in range(3):
        sent = server.run("send_message", room, "--text", f"job {number}", "--wait", within=60)
        assert sent.returncode == 0, sent.output
        assert sent.stdout.strip() == f"reviewer did: builder did: job {number}"
    for script in (builder, reviewer):
        script.process.terminate()
        script.wait()
    assert [message["text"] for message in messages(server, room, "progress")] == ["builder begins", "reviewer begins"] * 3


def start_shell_agent(server: Program, room: str, role: str, following: str, *, folder: Path) -> Command:
    (folder / "chatroom").write_text(f'#!/bin/sh\nexec {" ".join(MANAGE)} "$@"\n')
    (folder / "chatroom").chmod(0o755)
    environment = {**server.environment, "PATH": f"{folder}:{os.environ['PATH']}", "CHATROOM_ROOM": room, "CHATROOM_ROLE": role}
    script = ["/bin/sh", str(HERE / "shell_agent.sh"), following]
    command = Command(script, environment=environment, folder=server.folder, name=f"shell-{role}-{room[:30]}")
    server.commands.append(command)
    return command


def test_the_shell_agent_uses_nothing_but_the_commands() -> None:
    script = (HERE / "shell_agent.sh").read_text()
    assert "curl" not in script
    subprocess.run(["/bin/sh", "-n", str(HERE / "shell_agent.sh")], check=True)


@pytest.fixture(scope="module")
def two_webs(make_program: MakeProgram) -> tuple[Program, int]:
    """Two web processes on one database and one Redis; re-checks are so rare that only a hint can be the reason for a delivery."""
    program = make_program(CHATROOM_WAITER_RECHECK_INTERVAL="600", CHATROOM_FEED_RECHECK_INTERVAL="600")
    program.start()
    port = free_port()
    program.start_raw("web", "--port", str(port))
    wait_until(lambda: program.is_ready(port=port), within=30, what="the second web process serves")
    return program, port


def test_a_waiter_gets_what_another_web_process_accepted(two_webs: tuple[Program, int]) -> None:
    program, port = two_webs
    room = new_room(program, "Two webs")
    waiting = start_waiting(program, room, settings={"CHATROOM_SERVER": f"http://127.0.0.1:{port}"} | as_owner(program))
    send(program, room, "through the other door")
    assert waiting.wait() == 0
    assert "through the other door" in waiting.stdout


def test_a_handoff_reaches_the_waiter_at_another_web_process(two_webs: tuple[Program, int]) -> None:
    program, port = two_webs
    room = new_room(program, "Two webs, two roles")
    there = {"CHATROOM_SERVER": f"http://127.0.0.1:{port}"} | as_owner(program)
    builder, reviewer = start_waiting(program, room), start_waiting(program, room, "reviewer", settings=there)
    send(program, room, "go")
    assert builder.wait() == 0
    act(program, room, claim_of(builder), "handoff", next_role="reviewer", text="over there")
    assert reviewer.wait() == 0
    assert "over there" in reviewer.stdout


def as_owner(program: Program) -> dict[str, str]:
    return {"CHATROOM_TOKEN": program.token()}


def test_a_newer_start_at_another_web_process_supersedes_the_older_one(two_webs: tuple[Program, int]) -> None:
    program, port = two_webs
    room = new_room(program, "Two webs, one role")
    old = start_waiting(program, room)
    new = start_waiting(program, room, settings={"CHATROOM_SERVER": f"http://127.0.0.1:{port}"} | as_owner(program))
    assert old.wait() == 6
    send(program, room, "for the new one")
    assert new.wait() == 0
