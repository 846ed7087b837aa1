"""`/ws/agent/`: offers, and how a waiting program ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import OperationalError
from django.utils.timezone import now

from agents import consumers, waiters
from agents.models import Agent, AgentStatus, Claim
from agents.services import leave_agent, presence
from chatroom import ending
from chatroom.db import in_db
from chatroom.models import Event, Room, Task, TaskStatus
from chatroom.services.messages import send_message
from chatroom.services.tasks import cancel_task
from tests.factories import make_held_task, make_task, token_of

from .conftest import PATIENCE, Socket, agent_socket, knock

pytestmark = pytest.mark.usefixtures("live")


@pytest.fixture
def token(alice: User, room: Room) -> str:
    return token_of(alice)


def builder(room: Room) -> Agent:
    return Agent.objects.get(room=room, role="builder")


def task_of(room: Room) -> Task:
    return Task.objects.select_related("message").latest("pk")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def send(room: Room, author: User, text: str = "do it", **fields: Any) -> int:
    return (await in_db(send_message, room.pk, text=text, author=author, **fields)).task.pk


def triggers(room: Room, subject: str) -> list[str]:
    return list(Event.objects.filter(room=room, subject=subject).exclude(trigger="create").values_list("trigger", flat=True))


# --- offers


async def test_work_that_waits_is_offered_at_once(token: str, room: Room) -> None:
    task = make_task(room, text="waiting")
    async with agent_socket(token) as socket:
        await socket.join(room)
        offer = await socket.hear("offer")
        assert offer["claim"].startswith("c_")
        assert {name: offer[name] for name in ("attempt", "task", "role", "text", "from", "context")} == {
            "attempt": 1,
            "task": task.pk,
            "role": "builder",
            "text": "waiting",
            "from": "alice",
            "context": [],
        }
        await socket.say("received", claim=offer["claim"])
        assert await socket.hear("confirmed") == {"type": "confirmed", "claim": offer["claim"]}
        assert Claim.objects.get().delivered_at is not None
        await socket.say("bye", reason="task")
        assert await socket.closing_code() == 1000
    assert builder(room).status == AgentStatus.WORKING
    assert task_of(room).status == TaskStatus.ACKNOWLEDGED


@pytest.mark.scenario(16)
async def test_a_new_message_is_offered_to_its_waiter_once(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as socket, agent_socket(token) as reviewer:
        await socket.join(room)
        await reviewer.join(room, "reviewer", incarnation="r")
        sent = await send(room, alice)
        assert (await socket.hear("offer"))["task"] == sent
        assert await socket.hears_nothing()
        assert await reviewer.hears_nothing()


@pytest.mark.scenario(22)
async def test_an_offer_is_released_when_its_socket_drops_before_received(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as first, agent_socket(token) as second:
        await first.join(room, incarnation="first")
        await send(room, alice)
        offer = await first.hear("offer")
        await first.end()
        assert task_of(room).status == TaskStatus.PENDING
        assert task_of(room).assigned_role == "builder"
        assert builder(room).status == AgentStatus.READY
        await second.join(room, incarnation="second")
        again = await second.hear("offer")
        assert again["task"] == offer["task"]
        assert again["attempt"] == 2
        assert again["claim"] != offer["claim"]


async def test_an_offer_that_nobody_confirms_is_released(token: str, room: Room, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "OFFER_TIMEOUT", 0.05)
    async with agent_socket(token) as socket:
        await socket.join(room)
        await send(room, alice)
        await socket.hear("offer")
        assert await socket.closing_code() == 1013
        await socket.end()
        assert task_of(room).status == TaskStatus.PENDING


async def test_an_offer_that_was_taken_back_is_withdrawn_and_the_socket_waits_on(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        sent = await send(room, alice)
        offer = await socket.hear("offer")
        await in_db(cancel_task, room.pk, task_id=sent, actor="alice")
        await socket.say("received", claim=offer["claim"])
        assert await socket.hear("withdrawn") == {"type": "withdrawn", "claim": offer["claim"]}
        await until(lambda: builder(room).waiting_since)
        following = await send(room, alice, "another")
        assert (await socket.hear("offer"))["task"] == following


async def test_a_claim_of_somebody_else_is_never_confirmed(token: str, room: Room, alice: User) -> None:
    _, _, claim = make_held_task(room, "reviewer")
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.say("received", claim=claim.key)
        await socket.hear("withdrawn")
    assert Claim.objects.get().is_open


async def test_a_reconnect_finds_its_own_open_claim_again(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as first:
        await first.join(room, incarnation="one")
        await send(room, alice)
        offer = await first.hear("offer")
        await first.say("received", claim=offer["claim"])
        await first.hear("confirmed")
    async with agent_socket(token) as again:
        welcome = await again.join(room, incarnation="one", joined=True)
        assert welcome["status"] == "working"
        assert await again.hear("offer") == offer
        await again.say("received", claim=offer["claim"])
        await again.hear("confirmed")
    assert task_of(room).attempt == 1


async def test_a_newer_start_gets_the_task_of_the_older_one_as_a_new_attempt(token: str, room: Room, alice: User) -> None:
    task, _, claim = make_held_task(room)
    async with agent_socket(token) as socket:
        await socket.join(room, incarnation="new")
        offer = await socket.hear("offer")
        assert (offer["task"], offer["attempt"]) == (task.pk, 2)
        assert offer["claim"] != claim.key
    assert Claim.objects.get(pk=claim.pk).outcome == "superseded"


async def test_work_is_found_by_the_recheck_when_the_hint_is_lost(
    token: str, room: Room, alice: User, monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    settings.WAITER_RECHECK_INTERVAL = 0.1
    async with agent_socket(token) as socket:
        await socket.join(room)
        task = make_task(room)  # behind everybody's back: no signal, no hint
        assert (await socket.hear("offer"))["task"] == task.pk


async def test_an_offer_that_follows_one_taken_back_is_an_offer_of_its_own(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        first = await send(room, alice, "first")
        taken_back = await socket.hear("offer")
        second = await send(room, alice, "second")
        await in_db(cancel_task, room.pk, task_id=first, actor="alice")
        following = await socket.hear("offer")
        assert (taken_back["task"], following["task"]) == (first, second)
        await socket.say("received", claim=taken_back["claim"])
        assert (await socket.hear("withdrawn"))["claim"] == taken_back["claim"]
        await socket.end()
        # The answer to the first one did not make the server forget that the second one is not delivered.
        assert Task.objects.get(pk=second).status == TaskStatus.PENDING


# --- ends


async def lease_left(room: Room) -> float:
    return (builder(room).lease_expires_at - now()).total_seconds()  # type: ignore[operator]


@pytest.mark.scenario(7)
async def test_a_drop_without_a_word_cuts_the_lease(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.end()
        assert 8 < await lease_left(room) <= 10
        assert builder(room).status == AgentStatus.READY
        assert builder(room).waiting_since is None


async def test_a_bye_leaves_the_lease_to_bridge(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.say("bye", reason="timeout")
        assert await socket.closing_code() == 1000
        await socket.end()
        assert await lease_left(room) > 60
        assert builder(room).waiting_since is None


async def test_a_drop_while_the_server_ends_leaves_the_lease(token: str, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        monkeypatch.setattr(ending, "ending", True)
        await socket.end()
        assert await lease_left(room) > 60


async def test_a_drop_of_an_older_socket_does_not_touch_the_newer_ones_lease(token: str, room: Room) -> None:
    async with agent_socket(token) as old, agent_socket(token) as new:
        await old.join(room, incarnation="one")
        await new.join(room, incarnation="one", joined=True)
        await old.end()
        assert await lease_left(room) > 60
        assert builder(room).waiting_since is not None


async def test_a_leave_is_confirmed_and_the_agent_is_offline(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.say("leave")
        assert await socket.hear("left") == {"type": "left"}
        assert await socket.closing_code() == 1000
    assert builder(room).status == AgentStatus.OFFLINE
    assert triggers(room, "agent") == ["join", "leave"]


@pytest.mark.scenario(12)
async def test_a_late_leave_of_an_older_start_changes_nothing(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as old, agent_socket(token) as new:
        await old.join(room, incarnation="old")
        await new.join(room, incarnation="new")
        await old.say("leave")
        await new.say("renew")
        assert (await new.hear("renewed"))["answer"] == "ok"
        assert builder(room).status == AgentStatus.READY
        assert "leave" not in triggers(room, "agent")


async def test_a_person_who_ends_the_agent_ends_its_waiting(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        await in_db(leave_agent, room.pk, role="builder", actor="alice")
        assert "was told to leave by alice" in (await socket.hear("superseded"))["message"]
        assert await socket.closing_code() == 4409
    assert builder(room).status == AgentStatus.OFFLINE


async def test_an_ending_server_asks_to_come_back(token: str, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    async with agent_socket(token) as socket:
        monkeypatch.setattr(ending, "ending", True)
        await socket.hello(room)
        retry = await socket.hear("retry")
        assert retry["after"] > 0
        assert await socket.closing_code() == 1013
    assert builder(room).status == AgentStatus.OFFLINE


async def test_a_server_without_its_database_asks_to_come_back_and_keeps_the_lease(
    token: str, room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> bool:
        raise OperationalError("the database is away")

    async with agent_socket(token) as socket:
        await socket.join(room)
        monkeypatch.setattr(presence, "renew_lease", away)
        await socket.say("renew")
        await socket.hear("retry")
        assert await socket.closing_code() == 1013
        await socket.end()
        assert await lease_left(room) > 60


async def test_a_socket_whose_task_is_ended_without_a_last_message_waits_no_more(token: str, room: Room) -> None:
    communicator = knock(token)
    await communicator.connect(timeout=PATIENCE)
    await Socket(communicator).join(room)
    assert waiters.are_here(builder(room).pk)
    communicator.future.cancel()
    await until(lambda: not waiters.are_here(builder(room).pk))
    await until(lambda: builder(room).waiting_since is None)
