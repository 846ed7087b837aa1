"""Any part of the server is killed at any step of a chain: nothing is lost, nothing is done twice."""

import json
import random
import signal
import threading
from collections import Counter

import pytest

from tests.processes.acts import FAST, events, messages, new_room, room_status
from tests.processes.conftest import MakeProgram
from tests.processes.program import Command, Program

PARTS = ["web", "worker", "sweep", "valkey"]
LATEST_KILL = 0.25


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Program:
    # Leases as long as in life: a restart must not need anybody's death to go on.
    program = make_program(**{**FAST, "CHATROOM_HEARTBEAT_TTL": "90", "CHATROOM_HEARTBEAT_INTERVAL": "30", "CHATROOM_DROPPED_TTL": "10"})
    program.start()
    return program


class Killer:
    """Kills one part, chosen and timed by its seed, while a step of the chain is under way."""

    def __init__(self, program: Program, *, seed: int) -> None:
        self.program, self.random = program, random.Random(seed)
        self.killed: Counter[str] = Counter()

    def kill_during(self, command: Command, *, within: float = 45) -> Command:
        part = self.random.choice(PARTS)
        delay = self.random.uniform(0, LATEST_KILL)
        self.killed[part] += 1
        if part == "valkey" and not self.program.has_valkey:
            timer = threading.Timer(delay, self.program.broker.kill)
            old = 0
        else:
            old = self.program.part_pid(part)
            timer = threading.Timer(delay, self.program.kill_part, [part])
        timer.start()
        assert command.wait(within=within) == 0, command.output
        timer.join()
        if old:
            self.program.wait_for_restart(part, old=old)
        return command

    def run(self, *words: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.kill_during(self.program.start_command(*words, "--json")).stdout)
        return found


@pytest.mark.parametrize("seed", range(10))
def test_a_chain_survives_the_kill_of_any_part_at_every_step(program: Program, seed: int) -> None:
    room, killer = new_room(program, f"Seed {seed}"), Killer(program, seed=seed)
    builder = program.start_command("wait_for_task", room, "--role", "builder", "--json")
    reviewer = program.start_command("wait_for_task", room, "--role", "reviewer", "--json")
    sent = killer.run("send_message", room, "--text", "build it")
    delivered = json.loads(killer.kill_during(builder).stdout)
    assert delivered["task"] == sent["task"]
    claim = ("--claim", delivered["claim"])
    killer.run("task_started", room, *claim)
    killer.run("report_progress", room, *claim, "--text", "half way")
    handed = killer.run("handoff", room, *claim, "--next-role", "reviewer", "--text", "built")
    delivered = json.loads(killer.kill_during(reviewer).stdout)
    assert delivered["task"] == handed["next"]["task"]  # type: ignore[index]
    killer.run("task_complete", room, "--claim", delivered["claim"], "--text", "verdict")
    print(f"seed {seed}: killed {dict(killer.killed)}")
    assert_done_once(program, room)


def assert_done_once(program: Program, room: str) -> None:
    said = [(message["kind"], message["text"]) for message in messages(program, room)]
    assert said == [("chat", "build it"), ("progress", "half way"), ("handoff", "built"), ("result", "verdict")]
    tasks = program.api("GET", f"rooms/{room}/tasks").json()["tasks"]
    assert sorted((item["assigned_role"], item["status"]) for item in tasks) == [("builder", "completed"), ("reviewer", "completed")]
    for item in tasks:
        happened = Counter(event["trigger"] for event in events(program, room, subject="task", subject_id=item["id"]))
        assert (happened["create"], happened["start_task"] <= 1, happened["complete_task"]) == (1, True, 1)
        assert happened["claim_task"] == item["attempt"]
    assert not [item for item in room_status(program, room)["agents"] if item["task"]]
    assert {item["status"] for item in room_status(program, room)["agents"]} == {"ready"}


def test_killing_a_part_is_no_reason_for_the_others_to_end(program: Program) -> None:
    before = {part: program.part_pid(part) for part in PARTS if part != "valkey" or program.has_valkey}
    program.kill_part("worker", number=signal.SIGKILL)
    program.wait_for_restart("worker", old=before["worker"])
    assert {part: program.part_pid(part) for part in before if part != "worker"} == {
        part: pid for part, pid in before.items() if part != "worker"
    }
