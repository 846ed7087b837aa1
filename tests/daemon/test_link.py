import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from machines.daemon import link as link_module
from machines.daemon.errors import LinkLost, Refused
from machines.daemon.link import ServerLink, is_local, socket_url
from machines.daemon.reports import Reports
from tests.daemon.fakes import until
from tests.daemon.server import TOKEN, FakeServer, serving


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async for found in serving():
        yield found


class Client:
    """A link, and what it handed on."""

    def __init__(self, server: FakeServer, root: Path, *, token: str = TOKEN) -> None:
        self.lines: list[str] = []
        self.handled: list[dict[str, Any]] = []
        self.reports = Reports(root / "outbox.sqlite3", say=self.lines.append)
        self.link = ServerLink(
            server=server.url,
            token=token,
            reports=self.reports,
            say=self.lines.append,
            hello=lambda: {"instance": "i1"},
            handle=self.handle,
        )
        self.task = asyncio.create_task(self.link.run())

    async def handle(self, message: dict[str, Any]) -> None:
        self.handled.append(message)

    async def end(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Refused):
            await self.task
        self.reports.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FIRST_TRY", 0.1)
    monkeypatch.setattr(link_module, "SLOWEST_TRY", 0.2)
    monkeypatch.setattr(link_module, "PATIENCE_AT_FIRST", 0.3)
    monkeypatch.setattr(link_module, "PATIENCE_LATER", 0.5)


@pytest.fixture
async def make(server: FakeServer, tmp_path: Path, quick: None) -> AsyncIterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make_client(**how: Any) -> Client:
        clients.append(Client(server, tmp_path, **how))
        return clients[-1]

    yield make_client
    for client in clients:
        await client.end()


async def test_the_conversation_begins_in_the_order_of_the_protocol(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    await client.reports.put("run.exited", key="run:40:exited", run=40)
    await client.link.wait_up()
    assert [message["type"] for message in server.said if message["type"] != "alive"] == ["hello", "report", "replayed"]
    assert server.said[0] == {"type": "hello", "protocol": 1, "instance": "i1"}
    assert [message["type"] for message in client.handled] == ["welcome", "snapshot"]
    assert await client.reports.size() == 0


@pytest.mark.scenario(39)
async def test_reports_are_sent_in_order_and_again_until_they_are_acknowledged(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    await client.link.wait_up()
    server.acknowledges = False
    for number in range(5):
        await client.reports.put("run.exited", key=f"run:{number}:exited", run=number)
    await server.report("run.exited", number=5)
    assert await client.reports.size() == 5
    await server.stop()
    server.reports.clear()
    server.acknowledges = True
    await server.start()
    await server.report("run.exited", number=5)
    await until(lambda: client.link.is_up)
    assert [report["run"] for report in server.reports] == [0, 1, 2, 3, 4]
    assert await client.reports.size() == 0
    assert all("happened_at" not in report and report["age"] >= 0 for report in server.reports)


@pytest.mark.scenario(39)
async def test_an_outage_is_said_once_and_its_end_is_said_once(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    await client.link.wait_up()
    assert client.lines == [f"connected to {server.url}"]
    await server.stop()
    await until(lambda: client.link.tries >= 3)
    assert len(client.lines) == 2
    assert f"no connection to {server.url}" in client.lines[1]
    await server.start()
    await client.link.wait_up()
    assert client.lines[2:] == [f"{server.url} is back"]


async def test_signs_of_life_begin_at_once(server: FakeServer, make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "SIGN_OF_LIFE", 0.02)
    make()
    assert await server.hears("alive", number=5)


async def test_a_question_is_answered_or_ends_with_the_connection(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    with pytest.raises(LinkLost, match="no connection"):
        await client.link.ask("joined", run=1)
    await client.link.wait_up()
    assert (await client.link.ask("joined", run=41))["joined"] is True
    asking = asyncio.create_task(client.link.ask("joined", run=42))
    server.answer_ask = lambda message: server.socket.transport.abort() or {}  # type: ignore[method-assign, union-attr]
    with pytest.raises(LinkLost):
        await asking


async def test_a_question_to_a_connection_that_has_just_ended_waits_for_the_next_one(
    server: FakeServer, make: Callable[..., Client]
) -> None:
    client = make()
    await client.link.wait_up()
    assert client.link.socket is not None
    client.link.socket.transport.abort()
    await asyncio.sleep(0)  # it is closed, and nothing of the link has run since
    assert client.link.is_up
    for _ in range(3):
        with pytest.raises(LinkLost):
            await client.link.ask("joined", run=41)
        assert not client.link.is_up
    await asyncio.wait_for(client.link.wait_up(), 10)
    assert (await client.link.ask("joined", run=41))["joined"] is True


async def test_an_answer_that_does_not_come_makes_the_daemon_say_hello_again(
    server: FakeServer, make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "ANSWER_WITHIN", 0.1)
    client = make()
    await client.link.wait_up()
    server.answer_ask = lambda message: {"id": 999}  # type: ignore[method-assign]
    with pytest.raises(LinkLost, match="did not answer"):
        await client.link.ask("joined", run=41)
    await server.hears("hello", number=2)


@pytest.mark.parametrize("status", [401, 403])
async def test_an_unknown_token_ends_a_first_start(server: FakeServer, make: Callable[..., Client], status: int) -> None:
    server.status = status
    client = make()
    with pytest.raises(Refused, match="does not know this machine's token") as refused:
        await client.task
    assert refused.value.exit_code == 3


async def test_a_refusal_of_somebody_who_was_welcome_is_believed_only_when_it_lasts(
    server: FakeServer, make: Callable[..., Client]
) -> None:
    client = make()
    await client.link.wait_up()
    await server.stop()
    server.status = 403
    await server.start()
    await until(lambda: len(client.lines) == 2)
    assert not client.task.done()
    server.status = None
    await client.link.wait_up()
    await server.stop()
    server.status = 403
    await server.start()
    with pytest.raises(Refused):
        await asyncio.wait_for(client.task, 10)


async def test_a_daemon_whose_machine_is_revoked_ends_at_once_though_it_was_welcome(
    server: FakeServer, make: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "PATIENCE_LATER", 60.0)
    client = make()
    await client.link.wait_up()
    await server.tell(type="refused", error={"code": "revoked", "message": "laptop-7 was revoked"})
    with pytest.raises(Refused, match="laptop-7 was revoked") as refused:
        await asyncio.wait_for(client.task, 10)
    assert refused.value.exit_code == 3
    assert server.connections == 1


@pytest.mark.scenario(94)
async def test_a_second_instance_waits_for_the_first_then_gives_up(server: FakeServer, make: Callable[..., Client]) -> None:
    server.refusal = {"code": "second_instance", "message": "laptop-7 is already connected by another daemon"}
    client = make()
    with pytest.raises(Refused, match="already connected") as refused:
        await asyncio.wait_for(client.task, 10)
    assert refused.value.exit_code == 5
    assert server.connections > 1


@pytest.mark.scenario(94)
async def test_the_first_instance_does_not_give_up_when_another_took_its_place(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    await client.link.wait_up()
    server.refusal = {"code": "second_instance", "message": "laptop-7 is already connected by another daemon"}
    assert server.socket is not None
    await server.socket.close()
    await until(lambda: server.connections >= 5)
    assert not client.task.done()
    assert len(client.lines) == 2
    server.refusal = None
    await client.link.wait_up()


async def test_a_retry_is_waited_for_as_told(server: FakeServer, make: Callable[..., Client]) -> None:
    client = make()
    await client.link.wait_up()
    await server.tell(type="retry", message="the server is ending", after=0.3)
    await until(lambda: len(client.lines) == 2)
    assert "the server is ending" in client.lines[1]
    await client.link.wait_up()


@pytest.mark.parametrize("nonsense", ["[]", "{", '{"typ": 1}', '{"type": 3}'])
async def test_nonsense_from_the_server_ends_the_connection_not_the_daemon(
    server: FakeServer, make: Callable[..., Client], nonsense: str
) -> None:
    client = make()
    await client.link.wait_up()
    assert server.socket is not None
    await server.socket.send(nonsense)
    await server.hears("hello", number=2)
    await client.link.wait_up()


async def test_a_rejected_report_leaves_the_outbox_and_is_told(server: FakeServer, make: Callable[..., Client]) -> None:
    server.rejects = {"run.launched"}
    client = make()
    await client.reports.put("run.launched", key="run:41:launched", run=41)
    await until(lambda: [one for one in client.handled if one["type"] == "rejected"])
    assert await client.reports.size() == 0


def test_tries_spread_and_slow_down(tmp_path: Path) -> None:
    found: list[list[float]] = [[] for _ in range(8)]
    for _ in range(200):
        link = ServerLink(server="http://x", token="", reports=None, say=print, hello=dict, handle=None)  # type: ignore[arg-type]
        for pauses in found:
            pauses.append(link.pause())
    assert [max(pauses) <= most + 0.1 for pauses, most in zip(found, [5, 2, 4, 8, 16, 30, 30, 30], strict=True)] == [True] * 8
    assert all(max(pauses) - min(pauses) > 0.7 * max(pauses) for pauses in found)


def test_the_sockets_address_follows_the_servers() -> None:
    assert socket_url("http://127.0.0.1:8000") == "ws://127.0.0.1:8000/ws/machine/"
    assert socket_url("https://chat.example.org/base") == "wss://chat.example.org/base/ws/machine/"
    assert [is_local(url) for url in ("http://127.0.0.1:8000", "http://[::1]:8000", "https://chat.example.org")] == [True, True, False]
