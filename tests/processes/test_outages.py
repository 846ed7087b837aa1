"""Outages of our own: nobody who lives is declared dead, no claim is lost, every job is done once."""

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.processes.acts import (
    FAST,
    act,
    agent,
    claim_of,
    events,
    new_room,
    outlast_every_lease,
    send,
    start_waiting,
    take,
    wait_for_status,
)
from tests.processes.conftest import MakeProgram
from tests.processes.program import Command, Program, free_port, wait_until


@pytest.fixture(scope="module")
def program(make_program: MakeProgram) -> Program:
    program = make_program(**FAST, CHATROOM_TASK_PENDING_TIMEOUT="1", CHATROOM_JOB_RESEND_AFTER="1")
    program.start()
    return program


@pytest.fixture
def room(program: Program, request: pytest.FixtureRequest) -> str:
    return new_room(program, request.node.name.replace("_", " ")[:60])


@contextlib.contextmanager
def database_away(program: Program) -> Iterator[None]:
    """PostgreSQL is restarted, as far as one of its databases can see; SQLite is locked by somebody."""
    if not program.has_postgres:
        with locked_database(program):
            yield
        return
    url = urlsplit(program.environment["DATABASE_URL"])
    name = url.path.lstrip("/")
    with psycopg.connect(url._replace(scheme="postgresql", path="/postgres").geturl(), autocommit=True) as admin:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        admin.execute(allow.format(sql.Identifier(name), sql.SQL("false")))
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            yield
        finally:
            admin.execute(allow.format(sql.Identifier(name), sql.SQL("true")))


@contextlib.contextmanager
def locked_database(program: Program) -> Iterator[None]:
    if program.has_postgres:
        url = urlsplit(program.environment["DATABASE_URL"])._replace(scheme="postgresql").geturl()
        with psycopg.connect(url) as holder:
            holder.execute("LOCK TABLE agents_agent, chatroom_room IN ACCESS EXCLUSIVE MODE")
            yield
            holder.rollback()
    else:
        with contextlib.closing(sqlite3.connect(program.home / "chatroom.sqlite3", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
            holder.execute("ROLLBACK")


@pytest.mark.scenario(87)
@pytest.mark.parametrize("outage", [database_away, locked_database])
def test_after_an_outage_of_the_database_nobody_was_declared_dead_and_every_claim_is_as_it_was(
    program: Program, outage: object, request: pytest.FixtureRequest
) -> None:
    room = new_room(program, f"Outage {getattr(outage, '__name__', '')}")
    waiting = start_waiting(program, room, "reviewer")
    send(program, room, "go on while it is away")
    claim = take(program, room)
    act(program, room, claim, "start")
    with outage(program):  # type: ignore[operator]
        outlast_every_lease(program)
    program.wait_until_ready()
    report = program.run("report_progress", room, "--claim", claim, "--text", "still here")
    assert report.returncode == 0, report.output
    wait_until(lambda: agent(program, room, "reviewer")["waiting"], what="the reviewer waits again")
    assert waiting.returncode is None
    assert not events(program, room, name="agent.heartbeat_expired")
    assert not [event for event in events(program, room) if event["trigger"].startswith("recover_")]
    act(program, room, claim, "handoff", next_role="reviewer", text="built")
    assert waiting.wait() == 0


@pytest.mark.scenario(88)
def test_a_hung_broker_stops_no_renewal_and_no_work(program: Program, room: str) -> None:
    waiting = start_waiting(program, room)
    before = agent(program, room)["lease_expires_at"]
    program.broker.freeze()
    try:
        outlast_every_lease(program)
        assert agent(program, room)["status"] == "ready"
        assert agent(program, room)["lease_expires_at"] > before
        send(program, room, "without a broker")
        assert waiting.wait() == 0
        claim = claim_of(waiting)
        act(program, room, claim, "complete", text="done without")
    finally:
        program.broker.thaw()
    assert not events(program, room, name="agent.heartbeat_expired")


@pytest.mark.scenario(88)
@pytest.mark.parametrize("fault", ["hung", "emptied", "killed"])
def test_every_job_is_done_once_whatever_happens_to_the_broker(program: Program, fault: str) -> None:
    """The job here: the room's people are told, once, of a task that waits for an agent nobody has started."""
    room = new_room(program, f"Job {fault}")
    if fault == "hung":
        program.broker.freeze()
    send(program, room, "nobody takes this")
    told = wait_until(lambda: events(program, room, name="message.post", actor="chatroom"), within=30, what="the notice stands in the room")
    assert len(told) == 1
    if fault == "hung":
        program.broker.thaw()
    elif fault == "emptied":
        program.broker.empty()
    else:
        program.broker.kill()
    wait_until(lambda: events(program, room, name="room.tell"), within=40, what="the job is done")
    # A second message about the same job would come with the next sweeps.
    later = new_room(program, f"After {fault}")
    send(program, later, "nor this")
    wait_until(lambda: events(program, later, name="room.tell"), within=40, what="a later job is done")
    assert len(events(program, room, name="room.tell")) == 1


@pytest.mark.scenario(88)
def test_without_hints_a_waiter_at_another_web_process_finds_its_work_by_itself(program: Program, room: str) -> None:
    port = free_port()
    second = program.start_raw("web", "--port", str(port))
    wait_until(lambda: program.is_ready(port=port), within=30, what="the second web process serves")
    there = {"CHATROOM_SERVER": f"http://127.0.0.1:{port}", "CHATROOM_TOKEN": program.token()}
    waiting = start_waiting(program, room, settings=there)
    program.broker.freeze()
    try:
        send(program, room, "no hint tells of this")
        assert waiting.wait() == 0
    finally:
        program.broker.thaw()
        second.process.terminate()
        second.wait()


def test_a_dead_agent_is_still_declared_dead_once_the_quiet_time_is_over(program: Program, room: str) -> None:
    """The other side of it: an outage protects nobody for ever."""
    waiting: Command = start_waiting(program, room)
    old = program.kill_part("web", number=signal.SIGSTOP)
    waiting.kill()
    outlast_every_lease(program)
    program.kill_part("web")
    program.wait_for_restart("web", old=old)
    program.wait_until_ready()
    wait_for_status(program, room, "builder", "dead", within=30)
