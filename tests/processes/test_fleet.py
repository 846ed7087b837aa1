"""Fifty agents at once: the server goes, the server comes back, and nobody is the worse for it."""

import signal

import pytest

from tests.processes.acts import FAST, act, claim_of, events, new_room, outlast_every_lease, room_status, send, task
from tests.processes.conftest import MakeProgram
from tests.processes.program import Program, is_alive, wait_until

CREW = [f"role{number}" for number in range(50)]


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Program:
    # A lease is longer than a client may pause between two tries, as it is in life.
    program = make_program(**{**FAST, "CHATROOM_HEARTBEAT_INTERVAL": "2", "CHATROOM_HEARTBEAT_TTL": "10"})
    program.start()
    return program


def statuses(program: Program, room: str) -> dict[str, str]:
    return {item["role"]: item["status"] for item in room_status(program, room)["agents"]}


class Crew:
    """Fifty agents of one room: half of them wait, half of them work."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.room = new_room(program, "Fifty", team=CREW)
        self.workers, self.waiters = CREW[:25], CREW[25:]
        self.commands = {role: program.start_command("wait_for_task", self.room, "--role", role) for role in CREW}
        self.wait_until_all_wait(CREW)
        self.tasks = {role: send(program, self.room, f"work of {role}", to=role) for role in self.workers}
        self.claims = {role: self.begin(role) for role in self.workers}

    def begin(self, role: str) -> str:
        assert self.commands[role].wait() == 0
        claim = claim_of(self.commands[role])
        act(self.program, self.room, claim, "start")
        return claim

    def wait_until_all_wait(self, roles: list[str], *, within: float = 60) -> None:
        def they_wait() -> bool:
            found = {item["role"]: item for item in room_status(self.program, self.room)["agents"]}
            return all(found[role]["waiting"] and found[role]["status"] == "ready" for role in roles)

        wait_until(they_wait, within=within, what=f"{len(roles)} agents wait")

    def deaths(self) -> int:
        return len(events(self.program, self.room, name="agent.heartbeat_expired"))


@pytest.fixture(scope="module")
def crew(program: Program) -> Crew:
    return Crew(program)


@pytest.mark.scenario(86)
def test_after_an_outage_of_the_web_nobody_was_declared_dead_and_every_claim_is_as_it_was(program: Program, crew: Crew) -> None:
    sweep = program.part_pid("sweep")
    old = program.kill_part("web", number=signal.SIGSTOP)
    outlast_every_lease(program)
    program.kill_part("web")
    program.wait_for_restart("web", old=old)
    program.wait_until_ready()
    assert {statuses(program, crew.room)[role] for role in crew.waiters} == {"ready"}, "nobody is dead in the first moment"
    crew.wait_until_all_wait(crew.waiters, within=30)
    assert program.part_pid("sweep") == sweep
    assert is_alive(sweep)
    assert crew.deaths() == 0
    for role in crew.workers:
        found = task(program, crew.room, crew.tasks[role])
        assert (found["status"], found["attempt"], found["holder"]) == ("in_progress", 1, role)
        act(program, crew.room, crew.claims[role], "complete", text="done")
    assert not [command for role, command in crew.commands.items() if role in crew.waiters and command.returncode is not None]


@pytest.mark.scenario(14)
def test_fifty_waiting_clients_come_back_by_themselves_after_a_restart_and_each_gets_its_task_once(program: Program, crew: Crew) -> None:
    for role in crew.workers:
        if crew.commands[role].returncode is not None:
            crew.commands[role] = program.start_command("wait_for_task", crew.room, "--role", role)
    crew.wait_until_all_wait(CREW)
    joins = len(events(program, crew.room, name="agent.join"))
    old = program.kill_part("web", number=signal.SIGTERM)
    program.wait_for_restart("web", old=old)
    program.wait_until_ready()
    sent = {role: send(program, crew.room, f"after the restart, {role}", to=role) for role in CREW}
    for role, command in crew.commands.items():
        assert command.wait(within=30) == 0, command.output
        assert f"after the restart, {role}" in command.stdout
    assert len(events(program, crew.room, name="agent.join")) == joins, "a reconnect is not a join"
    assert crew.deaths() == 0
    for role, task_id in sent.items():
        found = task(program, crew.room, task_id)
        assert (found["status"], found["attempt"], found["holder"]) == ("acknowledged", 1, role)
    assert set(statuses(program, crew.room).values()) == {"working"}
