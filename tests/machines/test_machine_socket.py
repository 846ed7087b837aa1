"""`/ws/machine/`: refusals first, then hello, reports, snapshot, and asking, as in docs/protocol-machine.md."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import OperationalError
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from agents.sweep import expire_leases
from chatroom import ending
from chatroom.db import in_db
from chatroom.models import Event, Room, Token
from chatroom.principals import resolve_token
from chatroom.services.messages import send_message
from machines import consumers
from machines.models import Command, Machine, MachineStatus, Run
from machines.services.configuration import configure_agent
from machines.services.desire import abort_run, start_agent, stop_agent
from machines.services.registration import register_machine
from machines.services.revocation import revoke_machine
from machines.services.telling import glance, snapshot
from tests.api.conftest import PATIENCE, knock
from tests.factories import agent_token, token_of

from .playing import Daemon, Program
from .sockets import HELLO, daemon_socket, machine_of, until

pytestmark = pytest.mark.usefixtures("live")


# --- refusals


async def refused(secret: str) -> bool:
    is_open, _ = await knock(secret, "/ws/machine/").connect(timeout=PATIENCE)
    return not is_open


@pytest.mark.scenario(77)
async def test_only_a_machines_token_opens_the_socket(token: str, room: Room, alice: User) -> None:
    for secret in ("", "nonsense", token_of(alice), agent_token(room, "builder")):
        assert await refused(secret), secret
    assert not await refused(token)


@pytest.mark.scenario(78)
async def test_a_revoked_machine_is_refused(alice: User) -> None:
    machine, secret = register_machine("laptop-8", platform="", owner=alice)
    revoke_machine(machine, actor="alice")
    assert await refused(secret)


async def test_a_machine_that_is_revoked_while_connected_is_told_at_once(token: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await in_db(revoke_machine, machine_of(), actor="alice", force=True)
        assert (await socket.hear_in_time("refused"))["error"]["code"] == "revoked"
        assert await socket.closing_code() == 4403


async def test_where_the_hint_was_lost_its_next_sign_of_life_is_answered_so(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        monkeypatch.setattr("machines.hints.machine_changed", lambda machine_id: None)
        await in_db(revoke_machine, machine_of(), actor="alice", force=True)
        await socket.say("alive")
        assert (await socket.hear_in_time("refused"))["error"]["code"] == "revoked"


@pytest.mark.scenario(78)
async def test_a_machine_whose_token_was_revoked_is_refused_at_its_next_heartbeat(token: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        Token.objects.filter(kind="machine").update(revoked_at=now())
        await socket.say("heartbeat", runs=[])
        assert (await socket.hear_in_time("refused"))["error"]["code"] == "revoked"
        assert await socket.closing_code() == 4403


@pytest.mark.parametrize("text", ["{", "[]", '"hello"', '{"type": "dance"}', "{}", '{"type": ["hello"]}', "[" * 100_000])
async def test_what_is_no_message_is_refused_with_what_was_expected(token: str, text: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.communicator.send_to(text_data=text)
        error = (await socket.hear("refused"))["error"]
        assert (error["code"], "expected JSON with a type of hello" in error["message"]) == ("invalid", True)
        assert await socket.closing_code() == 4400


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"type": "alive"}, "expected hello first"),
        ({"type": "hello", **HELLO, "protocol": 2}, "protocol 2: this server speaks 1"),
        ({"type": "hello", **HELLO, "instance": 5}, "instance"),
    ],
)
async def test_whoever_does_not_begin_properly_is_refused(token: str, message: dict[str, Any], words: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.communicator.send_json_to(message)
        assert words in (await socket.hear("refused"))["error"]["message"]
        assert await socket.closing_code() == 4400


@pytest.mark.parametrize(
    "message",
    [
        {"type": "hello", **HELLO},
        {"type": "replayed"},
        {"type": "ask", "id": 1, "ask": "dance"},
        {"type": "ask", "id": 1, "ask": "open_run", "agent": 1, "generation": "x", "request": "a"},
        {"type": "harnesses", "slots": -1},
        {"type": "log", "chunks": 5},
    ],
)
async def test_a_malformed_message_ends_the_connection_with_words(token: str, message: dict[str, Any]) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.communicator.send_json_to(message)
        assert (await socket.hear_in_time("refused"))["error"]["code"] == "invalid"
        assert await socket.closing_code() == 4400


async def test_nothing_is_asked_before_the_snapshot(token: str, played: Daemon) -> None:
    async with daemon_socket(token) as socket:
        await socket.introduce()
        await socket.say("ask", id=1, ask="open_run", agent=played.agent.pk, generation=1, request="wish")
        assert "after the snapshot" in (await socket.hear("refused"))["error"]["message"]


@pytest.mark.scenario(94)
async def test_a_second_instance_is_refused_and_the_first_goes_on(token: str) -> None:
    async with daemon_socket(token) as first, daemon_socket(token) as second:
        await first.come_up()
        await second.say("hello", **{**HELLO, "instance": "instance-2"})
        error = (await second.hear("refused"))["error"]
        assert error["code"] == "second_instance"
        assert error["message"].startswith("laptop-9 is already connected by another daemon (instance instance, last sign of life 0 s ago)")
        assert await second.closing_code() == 4409
        await first.say("heartbeat", runs=[])
        await first.hear("heartbeat")


async def test_the_same_instance_displaces_its_own_older_socket(token: str) -> None:
    async with daemon_socket(token) as old, daemon_socket(token) as new:
        await old.come_up()
        await new.come_up()
        await old.say("alive")
        assert await old.closing_code() == 4409
        await new.say("heartbeat", runs=[])
        await new.hear("heartbeat")
    assert Event.objects.filter(subject="machine", trigger="connect").count() == 1


async def test_while_the_server_ends_a_daemon_is_asked_to_come_back(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with daemon_socket(token) as socket:
        monkeypatch.setattr(ending, "ending", True)
        await socket.say("hello", **HELLO)
        assert 1 <= (await socket.hear("retry"))["after"] <= 5
        assert await socket.closing_code() == 1013


async def test_while_the_database_is_away_a_daemon_is_asked_to_come_back(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> None:
        raise OperationalError("the database is away")

    async with daemon_socket(token) as socket:
        await socket.come_up()
        monkeypatch.setattr(consumers, "receive_report", away)
        await socket.say("report", key="k", report="run.validated")
        await socket.hear_in_time("retry")
        assert await socket.closing_code() == 1013


# --- one connection


async def test_hello_welcome_reports_replayed_snapshot(token: str, played: Daemon) -> None:
    run = played.launch(await in_db(played.open))
    async with daemon_socket(token) as socket:
        welcome = await socket.introduce(runs=[{"run": run.pk, "agent": run.agent_id, "generation": 1, "state": "running", "pid": 4711}])
        assert welcome["machine"] == {"id": machine_of().pk, "name": "laptop-9"}
        assert (welcome["protocol"], welcome["settings"]["heartbeat_interval"], welcome["settings"]["restart_attempts"]) == (1, 30, 3)
        ended: dict[str, Any] = {"code": 3, "signal": None, "failure": "crash", "message": "ended with exit code 3", "lines": []}
        ack = await socket.report(run, "run.exited", decision={"do": "none", "verdict": "faulty"}, **ended)
        assert ack == {"type": "ack", "key": f"run:{run.pk}:run.exited", "answer": "ok"}
        await socket.say("replayed")
        [agent] = (await socket.hear("snapshot"))["agents"]
        history = agent.pop("history")
        assert agent == {
            "agent": run.agent_id,
            "room": "demo",
            "role": "builder",
            "mode": "loop",
            "desired": "running",
            "generation": 1,
            "exhausted": None,
            "command": played.command.pk,
            "run": None,
            "joined": False,
        }
        assert [(exit_["run"], exit_["verdict"], exit_["joined"]) for exit_ in history] == [(run.pk, "faulty", False)]
    assert (machine_of().status, machine_of().slots) == (MachineStatus.CONNECTED, 5)


async def test_a_report_that_can_not_be_applied_is_answered_with_the_reason(token: str, played: Daemon) -> None:
    run = await in_db(played.open)
    async with daemon_socket(token) as socket:
        await socket.introduce(runs=[{"run": run.pk}])
        assert (await socket.report(run, "run.danced"))["answer"] == "rejected"
        assert "expected one of" in (await socket.report(run, "run.danced"))["reason"]
        assert (await socket.report(run, "run.validated"))["answer"] == "ok"


@pytest.mark.scenario(91)
async def test_a_run_that_is_not_named_is_lost_at_replayed_and_not_before(token: str, played: Daemon) -> None:
    run = await in_db(played.start)
    async with daemon_socket(token) as socket:
        await socket.introduce()
        assert Run.objects.get(pk=run.pk).state == "running"
        await socket.say("replayed")
        await socket.hear("snapshot")
        assert Run.objects.get(pk=run.pk).verdict == "lost"


async def test_a_press_reaches_the_daemon_at_once(token: str, room: Room) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        command = await in_db(start_agent, room.pk, role="builder", actor="alice")
        message = await socket.hear_in_time("command")
        assert (message["command"], message["act"]) == (command.pk, "start_agent")
        assert (message["agent"]["desired"], message["agent"]["generation"], message["agent"]["command"]) == ("running", 1, command.pk)
        await until(lambda: Command.objects.get().state == "dispatched")
        await in_db(stop_agent, room.pk, role="builder", actor="bob")
        assert (await socket.hear_in_time("agent", agent={**message["agent"], "desired": "stopped", "generation": 2, "command": None}))[
            "agent"
        ]


async def test_an_abort_names_its_run(token: str, played: Daemon, room: Room) -> None:
    run = await in_db(played.start)
    async with daemon_socket(token) as socket:
        await socket.come_up(runs=[{"run": run.pk, "state": "running", "pid": 1}])
        command = await in_db(abort_run, room.pk, role="builder", actor="alice")
        assert await socket.hear_in_time("command") == {"type": "command", "command": command.pk, "act": "abort_run", "run": run.pk}


async def test_what_changes_without_a_command_is_told_too(token: str, played: Daemon, room: Room, alice: User) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        run = played.launch(await in_db(played.open))
        await in_db(Program(run).join)
        message = await socket.hear_in_time("agent")
        while not message["agent"]["joined"]:
            message = await socket.hear_in_time("agent")
        assert message["agent"]["run"] == run.pk
        await in_db(played.exit, run, do="none")
        await in_db(configure_agent, room.pk, role="builder", user=alice, kind="custom")
        assert (await socket.hear_in_time("agent_removed"))["agent"] == run.agent_id


async def test_a_lost_hint_costs_seconds_and_no_command(
    token: str, room: Room, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FEED_RECHECK_INTERVAL = 0.05
    monkeypatch.setattr("machines.hints.machine_changed", lambda machine_id: None)
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await in_db(start_agent, room.pk, role="builder", actor="alice")
        assert (await socket.hear_in_time("command"))["act"] == "start_agent"


async def test_a_look_that_finds_nothing_new_reads_no_snapshot(
    token: str, played: Daemon, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FEED_RECHECK_INTERVAL = 0.05
    glances, snapshots = list[Any](), list[Any]()

    def kept(look: Callable[[int], Any], results: list[Any]) -> Callable[[int], Any]:
        def look_and_keep(machine_id: int) -> Any:
            results.append(look(machine_id))
            return results[-1]

        return look_and_keep

    monkeypatch.setattr(consumers, "glance", kept(glance, glances))
    monkeypatch.setattr(consumers, "snapshot", kept(snapshot, snapshots))
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await until(lambda: len(glances) > 3)
        before = len(snapshots)
        await until(lambda: len(glances) > 8)
        assert (len(snapshots), len(set(glances))) == (before, 1)
        monkeypatch.setattr("machines.hints.machine_changed", lambda machine_id: None)
        await in_db(start_agent, played.room.pk, role="builder", actor="alice")
        await socket.hear_in_time("command", act="start_agent")
        assert len(set(glances)) > 1


async def test_a_command_lost_on_the_way_is_in_the_next_snapshot(token: str, room: Room) -> None:
    command = await in_db(start_agent, room.pk, role="builder", actor="alice")
    await in_db(Command.objects.update, state="dispatched")
    async with daemon_socket(token) as socket:
        [agent] = await socket.come_up()
        assert (agent["command"], agent["desired"], agent["generation"]) == (command.pk, "running", 1)


async def test_a_run_is_opened_on_asking_and_its_joining_can_be_asked(token: str, played: Daemon, room: Room) -> None:
    await in_db(start_agent, room.pk, role="builder", actor="alice")
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.say("ask", id=5, ask="open_run", agent=played.agent.pk, generation=1, attempt=2, request="wish")
        answer = await socket.hear_in_time("answer", id=5)
        grant = answer["run"]
        assert (grant["role"], grant["attempt"], grant["harness"], "http://testserver" in grant["prompt"]) == ("builder", 2, "demo", True)
        assert resolve_token(grant["token"]).subject_id == grant["run"] == played.run.pk
        await socket.say("ask", id=6, ask="joined", run=grant["run"])
        assert await socket.hear_in_time("answer", id=6) == {
            "type": "answer",
            "id": 6,
            "run": grant["run"],
            "joined": False,
            "current": True,
        }


async def test_a_run_that_is_not_wanted_is_refused_with_what_is(token: str, played: Daemon, room: Room) -> None:
    await in_db(stop_agent, room.pk, role="builder", actor="alice")
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.say("ask", id=5, ask="open_run", agent=played.agent.pk, generation=0, request="wish")
        answer = await socket.hear_in_time("answer", id=5)
        assert (answer["error"]["code"], answer["error"]["message"]) == ("not_wanted", "builder was stopped by alice")
        assert (answer["agent"]["desired"], answer["agent"]["generation"]) == ("stopped", 1)
        await socket.say("ask", id=6, ask="open_run", agent=999, generation=0, request="wish")
        assert (await socket.hear_in_time("answer", id=6))["agent"] is None


async def test_a_heartbeat_is_answered_with_what_is_superseded(token: str, played: Daemon) -> None:
    run = await in_db(played.start)
    async with daemon_socket(token) as socket:
        await socket.come_up(runs=[{"run": run.pk, "state": "running", "pid": 1}])
        await socket.say("heartbeat", runs=[run.pk, 999])
        assert (await socket.hear_in_time("heartbeat"))["superseded"] == [999]


async def test_a_heartbeat_brings_a_dead_agent_back_with_its_claim(token: str, played: Daemon, room: Room, alice: User) -> None:
    await in_db(send_message, room.pk, text="do it", author=alice)
    run = await in_db(played.start)
    async with daemon_socket(token) as socket:
        await socket.come_up(runs=[{"run": run.pk, "state": "running", "pid": 1}])
        await in_db(Program(run).join(joined=True).take)
        Agent.objects.filter(role="builder").update(lease_expires_at=now() - timedelta(seconds=1))
        Machine.objects.update(status="disconnected")
        await in_db(expire_leases)
        Machine.objects.update(status="connected")
        assert played.agent.status == AgentStatus.DEAD
        await socket.say("heartbeat", runs=[run.pk])
        await until(lambda: played.agent.status == AgentStatus.WORKING)


async def test_behind_a_proxy_with_tls_the_prompt_names_the_address_of_the_proxy(
    played: Daemon, token: str, settings: LazySettings
) -> None:
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    await in_db(start_agent, played.room.pk, role="builder", actor="alice")
    async with daemon_socket(token, **{"x-forwarded-proto": "https"}) as socket:
        await socket.come_up()
        await socket.say("ask", id=5, ask="open_run", agent=played.agent.pk, generation=1, attempt=1, request="wish")
        grant = (await socket.hear_in_time("answer"))["run"]
    assert "--server https://testserver" in grant["prompt"]
