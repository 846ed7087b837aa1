"""`/api/v1/`: events, claims, and effects that happen once."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus, Claim, Outcome
from chatroom.db import in_db
from chatroom.models import Event, IdempotencyRecord, Message, Room, Task, TaskStatus, Token
from chatroom.services.messages import send_message
from tests.factories import agent_token, make_agent, make_claim, make_held_task, make_room, make_task

from .conftest import Api

pytestmark = pytest.mark.usefixtures("live")
As = Callable[[User], Api]


def counts() -> dict[str, int]:
    return {model.__name__: model.objects.count() for model in (Message, Task, Event, Claim, IdempotencyRecord)}  # type: ignore[attr-defined]


# --- events


async def test_events_are_told_in_order_from_a_cursor(owner: Api, room: Room, alice: User) -> None:
    await in_db(send_message, room.pk, text="go", author=alice)
    everything = (await owner.get("rooms/demo/events?after=0")).json()
    assert [found["name"] for found in everything["events"]] == ["room.create", "message.post", "task.create"]
    task = everything["events"][-1]
    assert (task["subject"], task["role"], task["from"], task["to"], task["actor"], task["data"]) == (
        "task",
        "builder",
        "",
        "pending",
        "alice",
        {},
    )
    assert everything["events"][1]["data"]["message"] == Message.objects.get().pk
    assert everything["last"] == task["id"]
    newest = (await owner.get("rooms/demo/events?limit=1")).json()
    assert [found["id"] for found in newest["events"]] == [task["id"]]


async def test_a_held_request_is_answered_by_the_next_event(owner: Api, room: Room, alice: User) -> None:
    last = (await owner.get("rooms/demo/events")).json()["last"]
    waiting = asyncio.create_task(owner.get(f"rooms/demo/events?after={last}&wait=20", within=25))
    await asyncio.wait({waiting}, timeout=0.1)
    assert not waiting.done()
    await in_db(send_message, room.pk, text="go", author=alice)
    answer = (await asyncio.wait_for(waiting, 5)).json()
    assert answer["events"][0]["name"] == "message.post"
    assert answer["last"] > last


async def test_a_held_request_finds_what_no_hint_told(owner: Api, room: Room, settings: Any) -> None:
    settings.FEED_RECHECK_INTERVAL = 0.05
    last = (await owner.get("rooms/demo/events")).json()["last"]
    waiting = asyncio.create_task(owner.get(f"rooms/demo/events?after={last}&wait=20", within=25))
    await asyncio.wait({waiting}, timeout=0.1)
    Event.objects.create(room=room, subject="room", subject_id=room.pk, trigger="test", actor="nobody")
    assert [found["name"] for found in (await asyncio.wait_for(waiting, 5)).json()["events"]] == ["room.test"]


async def test_a_held_request_ends_empty_when_nothing_happens(owner: Api, room: Room) -> None:
    last = (await owner.get("rooms/demo/events")).json()["last"]
    assert (await owner.get(f"rooms/demo/events?after={last}&wait=0.05")).json() == {"events": [], "last": last}


# --- claims


async def test_a_claims_acts_from_start_to_handoff(owner: Api, room: Room) -> None:
    task, _, claim = make_held_task(room, started=False)
    acts = f"rooms/demo/claims/{claim.key}"
    assert (await owner.post(f"{acts}/start")).json() == {"task": task.pk, "status": "in_progress"}
    progress = (await owner.post(f"{acts}/progress", {"text": "half"})).json()
    assert progress == {"message": Message.objects.get(kind="progress").pk, "task": task.pk}
    handed = (await owner.post(f"{acts}/handoff", {"next_role": "reviewer", "text": "whole"})).json()
    following = Task.objects.get(assigned_role="reviewer")
    assert handed == {
        "message": Message.objects.get(kind="handoff").pk,
        "task": task.pk,
        "status": "completed",
        "next": {"task": following.pk, "role": "reviewer", "status": "pending"},
    }


@pytest.mark.parametrize(("act", "status"), [("complete", "completed"), ("fail", "failed")])
async def test_a_claim_ends_with_a_text(act: str, status: str, owner: Api, room: Room) -> None:
    task, agent, claim = make_held_task(room)
    answer = (await owner.post(f"rooms/demo/claims/{claim.key}/{act}", {"text": "so it ends"})).json()
    assert answer == {"message": Message.objects.latest("pk").pk, "task": task.pk, "status": status}
    assert Agent.objects.get(pk=agent.pk).status == AgentStatus.READY


@pytest.mark.scenario(31)
async def test_a_handoff_to_an_unknown_role_is_refused_with_the_valid_ones_and_the_task_is_still_held(owner: Api, room: Room) -> None:
    task, _, claim = make_held_task(room)
    answer = await owner.post(f"rooms/demo/claims/{claim.key}/handoff", {"next_role": "cook", "text": "x"})
    assert (answer.status, answer.code) == (404, "no_such_role")
    assert answer.json()["error"]["allowed"] == ["builder", "reviewer", "user"]
    assert Task.objects.get(pk=task.pk).status == TaskStatus.IN_PROGRESS


@pytest.mark.parametrize("act", ["start", "progress", "complete", "handoff", "fail"])
async def test_an_unknown_claim_is_404(act: str, owner: Api, room: Room, charlie: User) -> None:
    elsewhere = make_held_task(await in_db(make_room, charlie, name="Elsewhere"))[2]
    for key in ("c_nothing", elsewhere.key, "%00", "x" * 500):
        answer = await owner.post(f"rooms/demo/claims/{key}/{act}", {"text": "x", "next_role": "user"})
        assert (answer.status, answer.code) == (404, "no_such_claim")


@pytest.mark.scenario(28)
@pytest.mark.parametrize("act", ["complete", "handoff", "fail", "progress"])
async def test_the_claim_of_an_older_attempt_is_refused_and_its_text_is_kept_once(act: str, owner: Api, room: Room) -> None:
    task, agent, claim = make_held_task(room)
    Claim.objects.filter(pk=claim.pk).update(ended_at=claim.offered_at, outcome=Outcome.SUPERSEDED)
    make_claim(task, agent, attempt=2)
    Task.objects.filter(pk=task.pk).update(attempt=2)
    for key in ("one", "two"):
        answer = await owner.post(
            f"rooms/demo/claims/{claim.key}/{act}", {"text": "my late work", "next_role": "user"}, idempotency_key=key
        )
        assert (answer.status, answer.code) == (409, "outdated_claim")
    assert f"task {task.pk} was reassigned: attempt 1 is yours, attempt 2 is with builder" in answer.json()["error"]["message"]
    assert Message.objects.filter(kind="late_result", text="my late work").count() == 1
    assert Task.objects.get(pk=task.pk).status == TaskStatus.IN_PROGRESS


@pytest.mark.scenario(28)
@pytest.mark.parametrize("act", ["complete", "handoff", "fail", "progress"])
async def test_a_restarted_run_with_its_predecessors_claim_is_refused_and_its_text_is_kept(act: str, room: Room) -> None:
    task, agent, claim = make_held_task(room)
    Claim.objects.filter(pk=claim.pk).update(incarnation="run:0", ended_at=claim.offered_at, outcome=Outcome.RESTARTED)
    make_claim(task, agent, attempt=2)
    body = {"text": "my late work", "next_role": "user"}
    answer = await Api(agent_token(room, "builder")).post(f"rooms/demo/claims/{claim.key}/{act}", body)
    assert (answer.status, answer.code) == (409, "outdated_claim")
    assert "attempt 1 is yours, attempt 2 is with builder" in answer.json()["error"]["message"]
    assert Message.objects.filter(kind="late_result", text="my late work").count() == 1
    assert Task.objects.get(pk=task.pk).status == TaskStatus.IN_PROGRESS


@pytest.mark.scenario(78)
@pytest.mark.parametrize("act", ["start", "progress", "complete", "handoff", "fail"])
async def test_an_agents_token_acts_for_its_own_role_only(act: str, room: Room) -> None:
    _, _, claim = make_held_task(room)
    before = counts()
    answer = await Api(agent_token(room, "reviewer")).post(f"rooms/demo/claims/{claim.key}/{act}", {"text": "x", "next_role": "user"})
    assert (answer.status, answer.code) == (409, "role_not_yours")
    assert counts() == before


@pytest.mark.scenario(78)
async def test_an_agents_token_sees_its_own_room_only(room: Room, charlie: User) -> None:
    agent = Api(agent_token(await in_db(make_room, charlie, name="Elsewhere"), "builder"))
    _, _, claim = make_held_task(room)
    assert (await agent.get("rooms/demo")).code == "no_such_room"
    assert (await agent.post(f"rooms/demo/claims/{claim.key}/complete", {"text": "x"})).code == "no_such_room"
    assert (await agent.post(f"rooms/elsewhere/claims/{claim.key}/complete", {"text": "x"})).code == "no_such_claim"


@pytest.mark.scenario(78)
async def test_an_agents_token_after_its_run_is_refused(room: Room) -> None:
    agent = Api(agent_token(room, "builder"))
    Token.objects.filter(kind="agent").update(revoked_at=room.created_at)
    assert (await agent.get("rooms/demo")).status == 401


async def test_a_person_ends_a_custom_agent_and_dismisses_a_dead_one(owner: Api, room: Room) -> None:
    make_agent(room)
    answer = await owner.post("rooms/demo/agents/builder/leave", {"incarnation": None})
    assert (answer.status, answer.json()) == (200, {"role": "builder", "status": "offline"})
    make_agent(room, "reviewer", status=AgentStatus.DEAD)
    assert (await owner.post("rooms/demo/agents/reviewer/dismiss")).json() == {"role": "reviewer", "status": "offline"}
    wrong = await owner.post("rooms/demo/agents/reviewer/dismiss")
    assert (wrong.status, wrong.code) == (409, "wrong_state")


@pytest.mark.scenario(12)
async def test_a_late_goodbye_of_an_older_start_changes_nothing(owner: Api, room: Room) -> None:
    make_agent(room, incarnation="new")
    answer = await owner.post("rooms/demo/agents/builder/leave", {"incarnation": "old"})
    assert answer.json() == {"role": "builder", "status": "ready"}
    assert not Event.objects.filter(trigger="leave").exists()


async def test_the_prompt_has_the_literal_command(owner: Api, room: Room) -> None:
    found = (await owner.get("rooms/demo/agents/builder/prompt")).json()
    assert found["role"] == "builder"
    assert found["command"] == "chatroom wait_for_task demo --role builder --server http://testserver"
    assert found["command"] in found["prompt"]
    unknown = await owner.get("rooms/demo/agents/cook/prompt")
    assert (unknown.status, unknown.code) == (404, "no_such_role")


# --- once


@pytest.mark.scenario(29, 100)
@pytest.mark.parametrize("act", ["start", "progress", "complete", "handoff", "fail"])
async def test_the_same_key_again_gets_the_same_answer_and_has_no_second_effect(act: str, owner: Api, room: Room) -> None:
    _, _, claim = make_held_task(room)
    body = {"text": "done", "next_role": "reviewer"}
    first = await owner.post(f"rooms/demo/claims/{claim.key}/{act}", body, idempotency_key="k1")
    before = counts()
    again = await owner.post(f"rooms/demo/claims/{claim.key}/{act}", body, idempotency_key="k1")
    assert first.status == again.status == 200
    assert first.json() == again.json()
    assert counts() == before


async def test_two_equal_requests_at_the_same_instant_have_one_effect(owner: Api, room: Room) -> None:
    answers = await asyncio.gather(*(owner.post("rooms/demo/messages", {"text": "once"}, idempotency_key="k") for _ in range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers if answer.json()}) >= 1
    assert len({json.dumps(answer.json(), sort_keys=True) for answer in answers}) == 1
    assert Message.objects.count() == Task.objects.count() == 1


async def test_the_same_key_with_another_body_is_422(owner: Api, room: Room) -> None:
    await owner.post("rooms/demo/messages", {"text": "one"}, idempotency_key="k")
    other = await owner.post("rooms/demo/messages", {"text": "two"}, idempotency_key="k")
    assert (other.status, other.code) == (422, "key_reused")
    assert Message.objects.count() == 1


async def test_a_key_counts_for_one_person_and_one_act(owner: Api, as_user: As, room: Room, bob: User) -> None:
    body = {"text": "same"}
    for answer in [
        await owner.post("rooms/demo/messages", body, idempotency_key="k"),
        await as_user(bob).post("rooms/demo/messages", body, idempotency_key="k"),
        await owner.post("rooms/demo/backlog", body, idempotency_key="k"),
    ]:
        assert answer.status == 201
    assert Message.objects.count() == 3


async def test_a_refusal_is_not_kept_under_its_key(owner: Api, room: Room) -> None:
    task = make_task(room, status=TaskStatus.COMPLETED)
    refused = await owner.post(f"rooms/demo/tasks/{task.pk}/retry", idempotency_key="k")
    assert refused.status == 409
    Task.objects.filter(pk=task.pk).update(status=TaskStatus.FAILED)  # a test's set-up
    assert (await owner.post(f"rooms/demo/tasks/{task.pk}/retry", idempotency_key="k")).status == 200


@pytest.mark.parametrize("key", ["x" * 201, "a\0b", "\x7f", "ü"])
async def test_a_key_that_cannot_be_kept_is_400_and_nothing_happens(key: str, owner: Api, room: Room) -> None:
    answer = await owner.post("rooms/demo/messages", {"text": "x"}, idempotency_key=key)
    assert (answer.status, answer.code) == (400, "invalid")
    assert not Message.objects.exists()


async def test_a_key_works_in_a_room_with_the_longest_name(owner: Api) -> None:
    slug = (await owner.post("rooms", {"name": "a" * 120})).json()["slug"]
    first = await owner.post(f"rooms/{slug}/messages", {"text": "x"}, idempotency_key="k")
    again = await owner.post(f"rooms/{slug}/messages", {"text": "x"}, idempotency_key="k")
    assert (first.status, again.json()) == (201, first.json())
    for task in (first.json()["task"], 999_999_999):
        assert (await owner.post(f"rooms/{slug}/tasks/{task}/force_complete", idempotency_key="k")).status in (200, 404)


async def test_a_key_does_no_harm_in_a_room_that_cannot_be(owner: Api) -> None:
    answer = await owner.post("rooms/a%00b/messages", {"text": "x"}, idempotency_key="k")
    assert (answer.status, answer.code) == (404, "no_such_room")
