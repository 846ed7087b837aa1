"""`/ws/machine/`: output, answers, and the silence of a daemon."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.utils.timezone import now

from chatroom.db import in_db
from chatroom.models import Event, Pulse, Room, Token, TokenKind
from machines import consumers
from machines.models import Act, Command, MachineStatus, Run, RunLog
from machines.services import connection as service
from machines.services.desire import restart_agent
from machines.services.pings import ask_machine
from tests.api.conftest import PATIENCE
from tests.factories import make_machine, make_placement

from .playing import Daemon
from .sockets import daemon_socket, machine_of, until

pytestmark = pytest.mark.usefixtures("live")


# --- hints


def log_of(run: Run) -> str:
    return RunLog.objects.filter(run=run).values_list("text", flat=True).first() or ""


async def test_the_tail_of_the_output_is_kept_with_its_gaps_and_without_control_sequences(token: str, played: Daemon) -> None:
    run = await in_db(played.open)
    async with daemon_socket(token) as socket:
        await socket.come_up(runs=[{"run": run.pk}])

        async def show(text: str, offset: int, **fields: Any) -> None:
            await socket.say("log", chunks=[{"run": run.pk, "offset": offset, "skipped": 0, "text": text, **fields}, {"run": 999}, "odd"])
            await socket.say("heartbeat", runs=[])
            await socket.hear_in_time("heartbeat")

        await show("\x1b[31mred\x1b[0m\x07\ud800 grün\n", 0, end=16)
        await show("\x1b[31mred\x1b[0m\x07\ud800 grün\n", 0, end=16)
        assert log_of(run) == "red? grün\n"
        await show("later\n", 100, end=106)
        assert log_of(run) == "red? grün\n\n… 84 bytes left out …\nlater\n"
        await show("later\nand on\n", 100, end=113)
        assert log_of(run).endswith("later\nand on\n")
        await show("x" * 70_000, 113, end=70_113)
        assert log_of(run) == "x" * 65_536
    assert RunLog.objects.count() == 1


async def test_an_output_of_another_machines_run_is_not_kept(token: str, room: Room, bob: User) -> None:
    other = Daemon(make_machine(bob, "other"), room, "reviewer")
    make_placement(other.machine, other.agent)
    run = await in_db(other.open)
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.say("log", chunks=[{"run": run.pk, "offset": 0, "text": "forged"}])
        await socket.say("heartbeat", runs=[])
        await socket.hear_in_time("heartbeat")
    assert not RunLog.objects.exists()


@pytest.mark.parametrize(("act", "data"), [(Act.PING, {}), (Act.STATUS, {"agents": [], "outbox": 0, "uptime": 3600.2, "load": 0.4})])
async def test_a_question_is_answered(token: str, act: Act, data: dict[str, Any]) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        command = await in_db(ask_machine, machine_of(), act, actor="alice")
        assert await socket.hear_in_time("command") == {"type": "command", "command": command.pk, "act": act}
        await socket.say("result", command=command.pk, data=data)
        await until(lambda: Command.objects.get().state == "completed")
        assert (Command.objects.get().answer, Command.objects.get().outcome) == (data, "answered")


async def test_an_answer_is_stored_whatever_is_in_it(token: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        command = await in_db(ask_machine, machine_of(), Act.STATUS, actor="alice")
        await socket.say("result", command=command.pk, data={"a\0": ["b\ud800\x1b[1m", {"c": None}], "n": 1.5})
        await until(lambda: Command.objects.get().state == "completed")
        assert Command.objects.get().answer == {"a": ["b?", {"c": None}], "n": 1.5}


async def test_a_configuration_read_again_is_known_at_once(token: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.say("harnesses", harnesses=[], slots=9, allow_dirs=["/srv"])
        await until(lambda: machine_of().allow_dirs == ["/srv"])
        assert (machine_of().slots, machine_of().harnesses) == (9, [])


# --- away


async def test_a_goodbye_is_believed_at_once(token: str) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await socket.say("goodbye", keep_agents=True)
        assert await socket.closing_code() == 1000
    assert machine_of().status == MachineStatus.DISCONNECTED
    assert Event.objects.get(subject="machine", trigger="disconnect").reason == "the daemon said goodbye: its agents live on"


@pytest.fixture
def impatient(settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "LOOK_INTERVAL", 0.02)
    settings.UNRESPONSIVE_AFTER, settings.DISCONNECTED_AFTER, settings.KEEPALIVE_TIMEOUT = 0.2, 0.5, 1.0


def machine_events() -> list[str]:
    return list(Event.objects.filter(subject="machine").exclude(trigger="register").order_by("pk").values_list("trigger", flat=True))


@pytest.mark.scenario(38)
async def test_a_silent_daemon_is_unresponsive_then_disconnected_and_its_socket_closed(
    token: str, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        assert await socket.closing_code() == 1013
    assert machine_events() == ["connect", "miss", "disconnect"]
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records if "no sign of life" in record.getMessage()]
    assert said == ["unresponsive", "disconnected"]


@pytest.mark.scenario(38)
async def test_a_silent_daemon_that_speaks_again_is_connected_at_once(token: str, impatient: None) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
        await until(lambda: machine_of().status == MachineStatus.DISCONNECTED)
        await socket.say("alive")
        await until(lambda: machine_of().status == MachineStatus.CONNECTED)
    assert machine_events() == ["connect", "miss", "disconnect", "connect"]


@pytest.mark.scenario(37)
async def test_a_daemon_whose_socket_ended_without_a_word_is_disconnected_after_the_same_time(token: str, impatient: None) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
    assert machine_of().status == MachineStatus.CONNECTED
    await until(lambda: machine_of().status == MachineStatus.DISCONNECTED)
    assert machine_events() == ["connect", "miss", "disconnect"]


async def test_a_daemon_that_comes_back_in_time_was_never_away(token: str, impatient: None, settings: LazySettings) -> None:
    async with daemon_socket(token) as socket:
        await socket.come_up()
    async with daemon_socket(token) as socket:
        await socket.come_up()
        for _ in range(40):
            await socket.say("alive")
            await asyncio.sleep(0.02)  # longer than the first one's silence takes to be noticed
    assert machine_events() == ["connect"]


async def test_in_the_quiet_time_a_silence_is_not_noted_and_afterwards_it_is(token: str, impatient: None) -> None:
    await in_db(Pulse.objects.update, quiet_until=now() + timedelta(seconds=60))
    async with daemon_socket(token) as socket:
        await socket.come_up()
    is_looked_at = asyncio.Event()
    loop = asyncio.get_running_loop()
    original = service.is_quiet

    def look(*, look_again_after: float = 0) -> bool:
        loop.call_soon_threadsafe(is_looked_at.set)
        return original(look_again_after=look_again_after)

    service.is_quiet = look
    try:
        await asyncio.wait_for(is_looked_at.wait(), PATIENCE)
        assert machine_events() == ["connect"]
        await in_db(Pulse.objects.update, quiet_until=now())
        await until(lambda: machine_events() == ["connect", "miss", "disconnect"] or machine_events() == ["connect", "disconnect"])
    finally:
        service.is_quiet = original


async def test_a_restart_while_its_daemon_is_away_is_carried_out_when_it_is_back(token: str, played: Daemon, room: Room) -> None:
    run = await in_db(played.start)
    await in_db(restart_agent, room.pk, role="builder", actor="alice")
    async with daemon_socket(token) as socket:
        [agent] = await socket.come_up(runs=[{"run": run.pk, "state": "running", "pid": 1}])
        assert (agent["generation"], agent["desired"], agent["run"]) == (2, "running", run.pk)
        assert (await socket.hear_in_time("command"))["act"] == "restart_agent"
    assert Token.objects.filter(kind=TokenKind.MACHINE, revoked_at=None).count() == 1
