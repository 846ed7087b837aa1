"""The demo, and agents that a daemon looks after: real programs in a real repository, seen through the started server."""

import html
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes.acts import agent, events, messages, new_room, room_status, wait_for_status
from tests.processes.browser import Browser, add_people
from tests.processes.conftest import MakeProgram
from tests.processes.demo import WRONG, clone_shop, git
from tests.processes.machines import programs_of
from tests.processes.program import Command, Program, is_alive, wait_until

SHELL_AGENT = Path(__file__).parent / "shell_agent.sh"
HARNESSES = ("demo-builder", "demo-reviewer", "shell", "counted", "broken")
QUICK = {"CHATROOM_RESTART_DELAY": "0.3", "CHATROOM_SWEEP_INTERVAL": "1", "CHATROOM_RECONNECT_WITHIN": "0.5"}


@pytest.fixture(scope="module")
def demo(make_program: MakeProgram) -> Iterator[Program]:
    """A server with its local daemon, as `make run` starts it."""
    program = make_program(**QUICK)
    program.start(daemon=True)
    shell_script(program, "counted")
    shell_script(program, "broken")
    add_harnesses(
        program, shell=["/bin/sh", str(SHELL_AGENT), "user"], counted=[script(program, "counted")], broken=[script(program, "broken")]
    )
    yield program
    program.stop()


def first_message(program: Program) -> Path:
    return program.home / "demo" / "first-message.md"


@pytest.fixture
def pair(demo: Program, request: pytest.FixtureRequest) -> str:
    """A room like the demo's, with a repository of its own as the demo's was at first."""
    room = new_room(demo, request.node.name.replace("_", " ")[:50], team="pair")
    clone_shop(demo, room)
    for role in ("builder", "reviewer"):
        place(demo, room, f"demo-{role}", role=role, folder=room)
    return room


def run_pid(program: Program, room: str, role: str) -> int:
    return wait_until(lambda: int((agent(program, room, role)["run"] or {}).get("pid") or 0), what=f"the PID of {role}")


def add_harnesses(program: Program, **commands: list[str]) -> None:
    """A person writes harnesses of theirs into the machine's own configuration."""
    with (program.home / "daemon" / "harnesses.toml").open("a") as file:
        for name, command in commands.items():
            file.write(f"\n[harnesses.{name}]\ncommand = {json.dumps(command)}\n")

    def are_offered() -> bool:
        machines = program.api("GET", "machines").json()["machines"]
        return {harness["name"] for harness in machines[0]["harnesses"]} >= set(commands)

    wait_until(are_offered, what=f"the machine offers {', '.join(commands)}")


def script(program: Program, name: str) -> str:
    return str(program.folder / f"{name}.sh")


def shell_script(program: Program, name: str, *lines: str) -> None:
    path = Path(script(program, name))
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def place(program: Program, room: str, harness: str, *, role: str = "builder", folder: str = "") -> None:
    machine = program.api("GET", "machines").json()["machines"][0]["name"]
    words = ("--kind", "remote", "--machine", machine, "--harness", harness, "--mode", "loop", "--dir", str(program.home / "demo" / folder))
    placed = program.run("configure_agent", room, "--role", role, *words)
    assert placed.returncode == 0, placed.output


def test_one_click_in_the_demo_room_ends_with_the_verdict(demo: Program) -> None:
    browser = Browser.of_owner(demo)
    page = browser.get("/rooms/demo/")
    offer = re.search(r'<form class="card demo-offer".*?name="text" value="(.*?)">', page, re.DOTALL)
    assert offer, page
    browser.post("/rooms/demo/messages/", text=html.unescape(offer[1]))

    wait_until(lambda: messages(demo, "demo", "result"), within=30, what="the verdict")
    verdict = messages(demo, "demo", "result")[0]
    assert (verdict["from"], verdict["to"]) == ("reviewer", "user")
    assert "The tests pass: 6 tests, all of them green." in verdict["text"]
    assert "test_pricing_a_cart_again_changes_nothing" in verdict["text"], "the output of the tests comes with it"
    progress = [(message["from"], message["text"].split()[0]) for message in messages(demo, "demo", "progress")]
    assert progress == [("builder", "applying"), ("builder", "it"), ("builder", "committed"), ("reviewer", "checked"), ("reviewer", "The")]
    assert git(demo, "rev-parse", "--short=10", "HEAD", room="shop") in verdict["text"]
    assert git(demo, "status", "--porcelain", room="shop") == ""
    assert 'class="card demo-offer"' not in browser.get("/rooms/demo/"), "what was sent is not offered again"


def test_the_demo_judges_wrong_patches_and_refuses_what_is_none(demo: Program, pair: str) -> None:
    sent = demo.run("send_message", pair, "--text", WRONG, "--wait", within=40)
    assert sent.returncode == 0, sent.output
    assert "The tests fail: FAILED (failures=2) of 6 tests." in sent.stdout
    head = git(demo, "rev-parse", "HEAD", room=pair)

    again = demo.run("send_message", pair, "--text", WRONG, "--wait", within=40)
    assert again.returncode == 9
    assert "`git apply` refused" in again.stderr
    assert "patch does not apply" in again.stderr

    nothing = demo.run("send_message", pair, "--text", "Please mend it; $(touch /tmp/x) `id`", "--wait", within=40)
    assert nothing.returncode == 9
    assert "no fenced diff" in nothing.stderr
    assert git(demo, "rev-parse", "HEAD", room=pair) == head
    assert git(demo, "status", "--porcelain", room=pair) == ""


@pytest.mark.scenario(24)
@pytest.mark.scenario(51)
def test_a_builder_killed_at_work_is_restarted_and_its_task_is_not_lost(demo: Program, pair: str) -> None:
    """It is killed between its commit and its handoff: the second attempt hands on what the first one made."""
    hook, begun, go = (demo.home / "demo" / name for name in (f"{pair}/.git/hooks/post-commit", "begun", "go"))
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{begun}'\nwhile [ ! -e '{go}' ]; do sleep 0.05; done\n")
    hook.chmod(0o755)
    waiting = demo.start_command("send_message", pair, "--file", str(first_message(demo)), "--wait")
    wait_until(begun.exists, what="the builder commits")
    pid = run_pid(demo, pair, "builder")
    assert agent(demo, pair)["status"] == "working"
    go.touch()
    os.kill(pid, signal.SIGSTOP)  # so that it does not go on while it is being killed
    os.kill(pid, signal.SIGKILL)

    assert waiting.wait(within=40) == 0, waiting.output
    assert "The tests pass" in waiting.stdout
    assert git(demo, "rev-list", "--count", "HEAD", room=pair) == "2", "committed once, not once for each attempt"
    steps = [event["to"] for event in events(demo, pair, subject="agent", role="builder") if event["to"]]
    assert steps[-5:] == ["dead", "restarting", "ready", "working", "ready"]
    assert [event["to"] for event in events(demo, pair, name="task.recover_orphaned")] == ["pending"]
    assert run_pid(demo, pair, "builder") not in {0, pid}
    assert not is_alive(pid)


def test_an_agent_started_from_a_shell_script_by_toml_alone_completes_a_chain(demo: Program) -> None:
    room = new_room(demo, "Shell", team="solo")
    place(demo, room, "shell")
    sent = demo.run("send_message", room, "--text", "in shell", "--wait", within=30)
    assert (sent.returncode, sent.stdout.strip()) == (0, "builder did: in shell"), sent.output
    listed = demo.run_json("harnesses", "--harnesses", str(demo.home / "daemon" / "harnesses.toml"))["harnesses"]
    assert {harness["name"]: harness["ok"] for harness in listed} == dict.fromkeys(HARNESSES, True)


@pytest.mark.scenario(50)
def test_five_people_who_send_and_two_who_press_start_at_the_same_instant_start_one_process(demo: Program, tmp_path: Path) -> None:
    started = tmp_path / "started"
    shell_script(demo, "counted", f"echo $$ >>'{started}'", f"exec /bin/sh '{SHELL_AGENT}' user")
    room = new_room(demo, "Five people", team="solo")
    place(demo, room, "counted")
    people = add_people(demo, [f"person{number}" for number in range(7)], room=room)
    together = threading.Barrier(len(people))

    def send(browser: Browser) -> None:
        together.wait()
        browser.post(f"/rooms/{room}/messages/", text="all at once")

    def press_start(browser: Browser) -> None:
        together.wait()
        browser.post(f"/rooms/{room}/agents/builder/run/start/")

    acts = [send] * 5 + [press_start] * 2
    threads = [threading.Thread(target=act, args=(browser,)) for act, browser in zip(acts, people, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(messages(demo, room, "result")) == 5, within=40, what="all five are answered")
    assert len(started.read_text().split()) == 1, "programs that were ever started"
    assert programs_of(demo, room) == [run_pid(demo, room, "builder")]
    assert len(events(demo, room, subject="run", to="preparing")) == 1


@pytest.mark.scenario(52)
@pytest.mark.scenario(99)
def test_a_builder_that_cannot_start_is_unrecoverable_with_its_reason_and_works_again_once_mended(demo: Program) -> None:
    shell_script(demo, "broken", "echo 'no licence found'", "exit 3")
    room = new_room(demo, "Broken", team="solo")
    place(demo, room, "broken")
    sent = demo.run("send_message", room, "--text", "work", "--wait", within=40)
    assert sent.returncode == 9
    assert "builder is unrecoverable: 3 of 3 attempts failed" in sent.stderr
    assert "ended with exit code 3" in sent.stderr

    found = agent(demo, room)
    assert found["status"] == "dead_failed_revive"
    assert "ended with exit code 3" in found["error_message"]
    [person] = add_people(demo, ["mender"], room=room)
    page = person.get(f"/rooms/{room}/")
    assert "DEAD (UNRECOVERABLE)" in page
    assert "no licence found" in page, "the last lines of its output stand on the page"
    assert len([message for message in messages(demo, room, "notice") if "unrecoverable" in message["text"]]) == 1, "told once"
    assert demo.run("start_agent", room, "--role", "builder", "--wait", within=40).returncode == 9

    shell_script(demo, "broken", f"exec /bin/sh '{SHELL_AGENT}' user")
    mended = demo.run("restart_agent", room, "--role", "builder", "--wait")
    assert mended.returncode == 0, mended.output
    wait_until(lambda: messages(demo, room, "result"), what="the work that waited is done")


@pytest.mark.scenario(49)
def test_what_the_machine_does_not_allow_is_refused_in_words(demo: Program, tmp_path: Path) -> None:
    room = new_room(demo, "Refused", team="solo")
    machine = demo.api("GET", "machines").json()["machines"][0]["name"]
    remote = ("configure_agent", room, "--role", "builder", "--kind", "remote", "--machine", machine)
    outside = demo.run(*remote, "--harness", "demo-builder", "--dir", str(tmp_path))
    assert (outside.returncode, f"{machine} allows {demo.home / 'demo'}" in outside.stderr) == (2, True), outside.output
    unknown = demo.run(*remote, "--harness", "rm -rf")
    assert (unknown.returncode, "offers demo-builder, demo-reviewer" in unknown.stderr) == (2, True), unknown.output

    link = demo.home / "demo" / "link"
    link.symlink_to(tmp_path)
    assert demo.run(*remote, "--harness", "demo-builder", "--dir", str(link)).returncode == 0, "only the machine can know where it leads"
    started = demo.run("start_agent", room, "--role", "builder", "--wait")
    assert started.returncode == 9
    assert f"leads to {tmp_path}, which is outside of what this machine allows" in started.stderr
    assert agent(demo, room)["status"] == "dead_failed_revive"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_of_daemon_and_agents_when_up_ends(make_program: MakeProgram, number: signal.Signals) -> None:
    program = make_program(**QUICK)
    up = program.start(daemon=True)
    assert program.run("send_message", "demo", "--file", str(first_message(program)), "--wait", within=40).returncode == 0
    pids = program.pids()
    agents = {run_pid(program, "demo", role) for role in ("builder", "reviewer")}
    assert agents <= pids
    up.signal(number)
    up.wait(within=10)
    wait_until(lambda: not [pid for pid in pids if is_alive(pid)], within=10, what="every process has ended")


def test_the_revoked_machine_of_up_is_gone_with_its_agents_and_its_daemon_is_not_started_again(make_program: MakeProgram) -> None:
    program = make_program(**QUICK)
    up = program.start(daemon=True)
    assert program.run("send_message", "demo", "--file", str(first_message(program)), "--wait", within=40).returncode == 0
    pids = [run_pid(program, "demo", role) for role in ("builder", "reviewer")]
    [machine] = program.api("GET", "machines").json()["machines"]
    refused = program.api("POST", f"machines/{machine['name']}/revoke", {})
    assert (refused.status, refused.json()["error"]["code"]) == (409, "agents_live_there")
    assert program.api("POST", f"machines/{machine['name']}/revoke", {"force": True}).status == 200

    for role in ("builder", "reviewer"):
        found = agent(program, "demo", role)
        assert (found["status"], found["error_message"]) == ("dead", f"{machine['name']} was revoked by owner")
        lost = events(program, "demo", subject="agent", role=role, to="dead")
        assert [event["reason"] for event in lost] == [found["error_message"]]
    assert [message["text"].partition(".")[0] for message in messages(program, "demo", "notice")] == [
        f"{machine['name']} was revoked by owner"
    ]
    up.wait_for_output("daemon: ended for good (exit 3)", within=20)
    assert not [pid for pid in pids if is_alive(pid)], "the daemon has ended its agents first"
    assert "daemon: started again" not in up.output
    assert program.run("start_agent", "demo", "--role", "builder").returncode == 5


def test_later_starts_keep_what_people_changed(make_program: MakeProgram) -> None:
    """Also at another port: the machine of this home is still the same one."""
    program = make_program(**QUICK)
    program.start(daemon=True)
    assert program.run("configure_agent", "demo", "--role", "reviewer", "--kind", "custom").returncode == 0
    assert program.run("stop_agent", "demo", "--role", "builder", "--wait").returncode == 0
    before = room_status(program, "demo")
    program.stop()

    later = make_program(fresh=True, home=program.home, **QUICK)
    later.environment |= {name: program.environment[name] for name in ("DATABASE_URL",) if name in program.environment}
    later.start(daemon=True)
    wait_until(lambda: room_status(later, "demo")["machines"][0]["status"] == "connected", what="the machine is back")
    after = room_status(later, "demo")
    assert [(item["role"], item["kind"], item["desired_state"], item["machine"]) for item in after["agents"]] == [
        ("builder", "remote", "stopped", before["machines"][0]["name"]),
        ("reviewer", "custom", None, None),
    ]
    assert len(later.api("GET", "machines").json()["machines"]) == 1
    assert wait_for_status(later, "demo", "builder", "offline")


def test_the_daemon_of_this_host_is_described_and_ended_by_its_commands(demo: Program, pair: str) -> None:
    found = demo.run_json("daemon_status")
    assert found["running"] is True
    assert found["process"]["pid"] == demo.part_pid("daemon")
    assert found["server_says"]["status"] == "connected"
    assert demo.run("send_message", pair, "--file", str(first_message(demo)), "--wait", within=40).returncode == 0
    pid, old = run_pid(demo, pair, "builder"), demo.part_pid("daemon")
    assert demo.run("daemon_stop", "--keep-agents").returncode == 0
    demo.wait_for_restart("daemon", old=old)
    wait_until(lambda: '"connected": true' in demo.run("daemon_status", "--json").stdout, what="the daemon is back")
    assert run_pid(demo, pair, "builder") == pid, "the new daemon took the living agent over"
    assert is_alive(pid)


def test_without_a_daemon_the_first_room_has_custom_agents(make_program: MakeProgram) -> None:
    program = make_program()
    program.start()
    assert {item["kind"] for item in room_status(program, "demo")["agents"]} == {"custom"}
    status: Command = program.run("daemon_status")
    assert status.returncode == 5
    program.stop()
