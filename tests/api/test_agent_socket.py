"""`/ws/agent/`: refusals first, then joining and renewing; what stops no renewal."""

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from agents import consumers, waiters
from agents.models import Agent, AgentStatus, Claim, Incarnation
from agents.services.presence import renew_lease
from chatroom.db import executors, in_db
from chatroom.models import Event, Membership, Room, Task, TaskStatus, Token, TokenKind
from chatroom.services.messages import send_message
from machines.services.registration import register_machine
from tests.factories import agent_token, make_agent, make_machine, make_placement, make_run, token_of

from .conftest import PATIENCE, agent_socket, knock

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


# --- refusals


@pytest.mark.parametrize("secret", ["", "wrong", "ü", "chatroom_person_" + "x" * 5000])
async def test_a_handshake_without_a_known_token_is_refused(secret: str, room: Room) -> None:
    is_open, _ = await knock("", authorization=f"Bearer {secret}" if secret else "Basic x").connect(timeout=PATIENCE)
    assert not is_open


async def test_a_revoked_token_is_refused(token: str, room: Room) -> None:
    Token.objects.update(revoked_at=now())
    is_open, _ = await knock(token).connect(timeout=PATIENCE)
    assert not is_open


@pytest.mark.parametrize(
    "text",
    [
        " ",
        "hello",
        "[]",
        "5",
        "null",
        '{"type": "dance"}',
        '{"type": ["hello"]}',
        "{}",
        "[" * 50_000,
        '{"type": "hello"}',
        '{"type": "hello", "protocol": 2, "room": "demo", "role": "builder", "incarnation": "x"}',
        '{"type": "hello", "protocol": 1, "room": "demo", "role": "builder", "incarnation": ""}',
        '{"type": "hello", "protocol": 1, "room": "demo", "role": "builder", "incarnation": "a\\u0000b"}',
        '{"type": "hello", "protocol": 1, "room": "demo", "role": "builder", "incarnation": "\\ud800"}',
        '{"type": "hello", "protocol": 1, "room": "demo", "role": ["builder"], "incarnation": "x"}',
        json.dumps({"type": "hello", "protocol": 1, "room": "demo", "role": "builder", "incarnation": "x" * 121}),
        '{"type": "renew"}',
        '{"type": "received", "claim": "c_1"}',
        '{"type": "leave"}',
    ],
)
async def test_what_is_no_message_of_the_protocol_is_answered_with_error_and_closed(text: str, token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.communicator.send_to(text_data=text)
        error = (await socket.hear("error"))["error"]
        assert error["code"] == "invalid"
        assert "expected" in error["message"] or "speaks" in error["message"]
        assert await socket.closing_code() == 4400
    assert builder(room).status == AgentStatus.OFFLINE


async def test_bytes_are_no_message_of_the_protocol(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.communicator.send_to(bytes_data=b"\x00\xff")
        assert (await socket.hear("error"))["error"]["code"] == "invalid"
        assert await socket.closing_code() == 4400


async def test_a_second_hello_is_an_error(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.hello(room)
        await socket.hear("error")
        assert await socket.closing_code() == 4400


async def refusal(token: str, room: Room | str, role: str = "builder") -> str:
    async with agent_socket(token) as socket:
        await socket.hello(room, role)
        error = (await socket.hear("refused"))["error"]
        assert await socket.closing_code() == 4403
        return str(error["code"])


async def test_a_stranger_learns_nothing_of_the_room(charlie: User, room: Room) -> None:
    assert await refusal(token_of(charlie), room) == "no_such_room"
    assert await refusal(token_of(charlie), "nowhere") == "no_such_room"


async def test_a_viewer_cannot_wait_for_work(vera: User, room: Room) -> None:
    assert await refusal(token_of(vera), room) == "not_allowed"


async def test_an_unknown_role_is_refused_with_the_valid_ones(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.hello(room, "cook")
        error = (await socket.hear("refused"))["error"]
    assert (error["code"], error["allowed"]) == ("no_such_role", ["builder", "reviewer"])


@pytest.mark.scenario(78)
async def test_an_agents_token_waits_for_its_own_role_and_room_only(alice: User, room: Room) -> None:
    other = agent_token(room, "reviewer")
    assert await refusal(other, room) == "role_not_yours"
    assert await refusal(other, "nowhere") == "no_such_room"


async def test_a_person_cannot_wait_as_a_remote_role(token: str, room: Room) -> None:
    make_agent(room, status=AgentStatus.OFFLINE, kind="remote")
    assert await refusal(token, room) == "role_not_yours"
    assert builder(room).status == AgentStatus.OFFLINE


# --- joining, renewing


@pytest.mark.scenario(1)
async def test_a_hello_is_welcomed_and_the_agent_is_ready_with_one_event(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        welcome = await socket.join(room, incarnation="first")
        assert welcome == {
            "type": "welcome",
            "protocol": 1,
            "room": {"id": room.pk, "slug": room.slug, "name": room.name},
            "role": "builder",
            "status": "ready",
            "lease_seconds": 90,
            "renew_seconds": 30,
            "resumed": False,
        }
        agent = builder(room)
        assert (agent.status, agent.incarnation) == (AgentStatus.READY, "first")
        assert agent.lease_expires_at is not None
        assert agent.waiting_since is not None
        assert triggers(room, "agent") == ["join"]


@pytest.mark.scenario(2)
async def test_a_renewal_moves_the_lease_and_writes_no_event(token: str, room: Room) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        soon = now() + timedelta(seconds=5)
        Agent.objects.filter(room=room).update(lease_expires_at=soon)
        events = Event.objects.count()
        await socket.say("renew")
        assert await socket.hear("renewed") == {"type": "renewed", "answer": "ok", "lease_seconds": 90}
        assert builder(room).lease_expires_at > soon  # type: ignore[operator]
        assert Event.objects.count() == events


@pytest.mark.scenario(4)
async def test_a_renewal_of_a_dead_agent_resumes_it_and_its_work_comes(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room, incarnation="one")
        make_agent(room, status=AgentStatus.DEAD, incarnation="two")
        Incarnation.objects.filter(key="two").delete()
        Incarnation.objects.filter(key="one").update(ended_at=None)
        Agent.objects.filter(room=room, role="builder").update(incarnation="one", status="dead", lease_expires_at=None)  # a test's set-up
        await send(room, alice)
        await socket.say("renew")
        assert (await socket.hear("renewed"))["answer"] == "resume"
        assert (await socket.hear("offer"))["task"] == task_of(room).pk
        assert builder(room).status == AgentStatus.WORKING


@pytest.mark.scenario(3)
async def test_the_newest_start_wins_and_the_older_one_is_told(token: str, room: Room) -> None:
    async with agent_socket(token) as old, agent_socket(token) as new:
        await old.join(room, incarnation="old")
        await new.join(room, incarnation="new")
        told = await old.hear("superseded")
        assert "a newer start of builder took over" in told["message"]
        assert await old.closing_code() == 4409
        await old.end()
        agent = builder(room)
        assert (agent.status, agent.incarnation) == (AgentStatus.READY, "new")
        assert (agent.lease_expires_at - now()).total_seconds() > 60  # type: ignore[operator]
        assert agent.waiting_since is not None


@pytest.mark.scenario(13)
async def test_a_reconnect_of_an_older_start_never_displaces_the_newer_one(token: str, room: Room) -> None:
    async with agent_socket(token) as first, agent_socket(token) as new, agent_socket(token) as again:
        await first.join(room, incarnation="old")
        await first.end()
        await new.join(room, incarnation="new")
        await again.hello(room, incarnation="old", joined=True)
        await again.hear("superseded")
        assert await again.closing_code() == 4409
        assert builder(room).incarnation == "new"
        assert await new.hears_nothing()


@pytest.mark.scenario(13)
async def test_a_late_word_on_an_older_connection_displaces_no_newer_one_of_the_same_start(token: str, room: Room, alice: User) -> None:
    """The client gave the first one up before the server had read its hello."""
    async with agent_socket(token) as late, agent_socket(token) as newer:
        await newer.join(room, incarnation="one", connection=2)
        await late.hello(room, incarnation="one", connection=1)
        assert "a newer connection of this start" in (await late.hear("superseded"))["message"]
        assert await late.closing_code() == 4409
        await late.end()
        await send(room, alice)
        assert (await newer.hear("offer"))["attempt"] == 1
    assert triggers(room, "agent")[0] == "join"


@pytest.mark.parametrize("number", [0, 1, True, None, "2", -1, 10**9])
async def test_connections_that_do_not_count_up_take_over_in_the_order_in_which_they_come(token: str, room: Room, number: object) -> None:
    async with agent_socket(token) as first, agent_socket(token) as again:
        await first.join(room, incarnation="one", connection=number)
        await again.join(room, incarnation="one", connection=number, joined=True)
        assert len(builder(room).connection) <= 32


async def test_a_newer_socket_of_the_same_start_takes_over_from_the_older_one(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as half_open, agent_socket(token) as again:
        await half_open.join(room, incarnation="one")
        await again.join(room, incarnation="one", joined=True)
        assert triggers(room, "agent") == ["join"]
        await send(room, alice)
        assert (await again.hear("offer"))["attempt"] == 1
        await half_open.hear("superseded")
    assert Claim.objects.count() == 1


async def test_a_reconnect_after_a_drop_has_its_whole_lease_again(token: str, room: Room) -> None:
    async with agent_socket(token) as first:
        await first.join(room, incarnation="one")
    async with agent_socket(token) as again:
        await again.join(room, incarnation="one", joined=True)
        assert (builder(room).lease_expires_at - now()).total_seconds() > 60  # type: ignore[operator]
        assert triggers(room, "agent") == ["join"]


# --- liveness


async def test_a_blocked_work_executor_stops_no_renewal(token: str, room: Room, alice: User) -> None:
    async with agent_socket(token) as socket:
        await socket.join(room)
        release = threading.Event()
        blocked = [executors.work.submit(release.wait, 30) for _ in range(2 * executors.work._max_workers)]
        try:
            soon = now() + timedelta(seconds=5)
            Agent.objects.filter(room=room).update(lease_expires_at=soon)
            await socket.say("renew")
            assert (await socket.hear("renewed"))["answer"] == "ok"
            assert builder(room).lease_expires_at > soon  # type: ignore[operator]
            assert not any(job.done() for job in blocked)
        finally:
            release.set()


@pytest.mark.parametrize("path", ["/ws/agent/", "/ws/machine/"])
async def test_a_blocked_work_executor_stops_no_handshake(token: str, room: Room, alice: User, path: str) -> None:
    secret = token if path == "/ws/agent/" else (await in_db(register_machine, "laptop-9", platform="", owner=alice))[1]
    release = threading.Event()
    blocked = [executors.work.submit(release.wait, 30) for _ in range(2 * executors.work._max_workers)]
    try:
        is_open, _ = await knock(secret, path).connect(timeout=PATIENCE)
        assert is_open
        assert not any(job.done() for job in blocked)
    finally:
        release.set()


async def test_a_look_for_work_that_hangs_stops_no_renewal(token: str, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(consumers, "offer_next", lambda *_, **__: release.wait(30) and None)
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.say("renew")
        try:
            assert (await socket.hear("renewed"))["answer"] == "ok"
        finally:
            release.set()


async def test_a_hung_channel_layer_stops_no_renewal_and_no_work(
    token: str, room: Room, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hung:
        """Accepts everything, finishes nothing."""

        def __getattr__(self, name: str) -> Any:
            async def never(*_: Any, **__: Any) -> None:
                await asyncio.Event().wait()

            return never

    monkeypatch.setattr("chatroom.hub.get_channel_layer", Hung)
    async with agent_socket(token) as socket:
        await socket.join(room)
        await socket.say("renew")
        assert (await socket.hear("renewed"))["answer"] == "ok"
        sent = await send(room, alice)
        assert (await socket.hear("offer"))["task"] == sent


async def test_a_renewal_is_one_statement(token: str, room: Room) -> None:
    agent = make_agent(room, incarnation="one")
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert renew_lease(agent.pk, incarnation="one")
    assert len(queries) == 1


# --- whoever may not wait any more


def lose_token(room: Room, user: User) -> None:
    Token.objects.filter(user=user).update(revoked_at=now())


def lose_membership(room: Room, user: User) -> None:
    Membership.objects.filter(room=room, user=user).delete()


def become_viewer(room: Room, user: User) -> None:
    Membership.objects.filter(room=room, user=user).update(role="viewer")


def lose_account(room: Room, user: User) -> None:
    User.objects.filter(pk=user.pk).update(is_active=False)


@pytest.mark.scenario(78)
@pytest.mark.parametrize("lose", [lose_token, lose_membership, become_viewer, lose_account])
async def test_who_may_not_play_the_role_any_more_waits_for_no_more_work(
    lose: Callable[[Room, User], None], room: Room, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch, settings: LazySettings
) -> None:
    settings.WAITER_RECHECK_INTERVAL = 0.05
    monkeypatch.setattr(waiters, "TRUSTED_FOR", 0.0)
    async with agent_socket(token_of(bob)) as socket, agent_socket(token_of(alice)) as reviewer:
        await socket.join(room)
        await reviewer.join(room, "reviewer")
        await in_db(lose, room, bob)
        assert (await socket.hear("refused"))["error"]["code"] == "not_signed_in"
        assert await socket.closing_code() == 4403
        await socket.end()
        await send(room, alice)
        assert await reviewer.hears_nothing()
    assert task_of(room).status == TaskStatus.PENDING


async def test_an_agent_whose_run_lives_waits_on(room: Room, monkeypatch: pytest.MonkeyPatch, settings: LazySettings, alice: User) -> None:
    settings.WAITER_RECHECK_INTERVAL = 0.05
    monkeypatch.setattr(waiters, "TRUSTED_FOR", 0.0)
    run = make_run(make_placement(make_machine(alice), builder(room)), joined=False)
    _, secret = Token.objects.issue(kind=TokenKind.AGENT, name="run", room=room, role="builder", subject_id=run.pk)
    async with agent_socket(secret) as socket:
        await socket.join(room)
        assert await socket.hears_nothing()
