"""`/api/v1/`: people, rooms, messages, tasks; faults."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import OperationalError
from django.utils.timezone import now

from agents.models import Claim
from chatroom import api as api_module
from chatroom import ending
from chatroom.db import in_db
from chatroom.models import DeviceGrant, Event, IdempotencyRecord, Membership, Message, Pulse, Room, Task, TaskStatus
from chatroom.services.tokens import approve_device_grant, deny_device_grant
from tests.factories import agent_token, make_held_task, make_message, make_room, make_task, token_of

from .conftest import Answer, Api, ask

pytestmark = pytest.mark.usefixtures("live")
As = Callable[[User], Api]


def counts() -> dict[str, int]:
    return {model.__name__: model.objects.count() for model in (Message, Task, Event, Claim, IdempotencyRecord)}  # type: ignore[attr-defined]


# --- who


async def test_whoami_of_a_person_and_of_an_agent(owner: Api, room: Room) -> None:
    assert (await owner.get("whoami")).json() == {"kind": "person", "name": "alice", "room": None, "role": None}
    agent = Api(agent_token(room, "builder"))
    assert (await agent.get("whoami")).json() == {"kind": "agent", "name": "builder", "room": "demo", "role": "builder"}


@pytest.mark.parametrize("header", ["", "Basic YWxpY2U6eA==", "Bearer", "Bearer wrong", "Bearer ü", "bearer wrong", "Bearer a b c"])
async def test_without_a_known_token_nobody_is_signed_in(header: str, room: Room) -> None:
    named: dict[str, Any] = {"authorization": header} if header else {}
    answer = await ask("GET", "/api/v1/rooms", **named)
    assert (answer.status, answer.code) == (401, "not_signed_in")


async def test_logout_revokes_the_token_and_no_other(alice: User, room: Room) -> None:
    one, other = Api(token_of(alice)), Api(token_of(alice))
    assert (await one.post("logout")).status == 204
    assert (await one.get("whoami")).status == 401
    assert (await other.get("whoami")).status == 200


async def test_a_disabled_person_is_not_signed_in(owner: Api, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert (await owner.get("whoami")).status == 401


async def test_a_terminal_signs_in_once_somebody_approved_its_code(room: Room, alice: User) -> None:
    begun = (await ask("POST", "/api/v1/device", {"client": "alice-laptop"})).json()
    assert re.fullmatch(r"[A-Z]{4}-[A-Z]{4}", begun["user_code"])
    assert begun["verification_url"] == "http://testserver/device/"
    assert begun["verification_url_complete"].endswith(begun["user_code"])

    async def redeem() -> Answer:
        return await ask("POST", "/api/v1/device/token", {"device_code": begun["device_code"]})

    waiting = await redeem()
    assert (waiting.status, waiting.code) == (400, "authorization_pending")
    await in_db(approve_device_grant, begun["user_code"], user=alice)
    signed_in = (await redeem()).json()
    assert signed_in["name"] == "alice"
    assert (await Api(signed_in["token"]).get("whoami")).json()["name"] == "alice"
    assert (await redeem()).code == "expired_token"


async def test_a_denied_terminal_is_told(room: Room, alice: User) -> None:
    begun = (await ask("POST", "/api/v1/device", {})).json()
    await in_db(deny_device_grant, begun["user_code"], user=alice)
    answer = await ask("POST", "/api/v1/device/token", {"device_code": begun["device_code"]})
    assert (answer.status, answer.code) == (400, "access_denied")


async def test_too_many_terminals_at_once_are_asked_to_come_later(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "OPEN_GRANTS", 1)
    assert (await ask("POST", "/api/v1/device", {})).status == 200
    answer = await ask("POST", "/api/v1/device", {})
    assert (answer.status, answer.code) == (429, "too_many")
    assert float(answer.headers["retry-after"]) > 0


async def test_terminals_that_waited_in_vain_keep_nobody_from_signing_in(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "OPEN_GRANTS", 1)
    assert (await ask("POST", "/api/v1/device", {})).status == 200
    await in_db(DeviceGrant.objects.update, expires_at=now())
    assert (await ask("POST", "/api/v1/device", {})).status == 200


async def test_links_name_the_address_that_people_use(owner: Api, room: Room, settings: LazySettings) -> None:
    settings.PUBLIC_URL = "https://chat.example/"
    assert (await ask("POST", "/api/v1/device", {})).json()["verification_url"] == "https://chat.example/device/"
    assert (await owner.post("rooms", {"name": "Mill"})).json()["url"] == "https://chat.example/rooms/mill/"
    prompt = (await owner.get("rooms/demo/agents/builder/prompt")).json()
    assert prompt["command"].endswith("--server https://chat.example")


# --- rooms


async def test_a_room_is_created_with_its_team_and_its_owner(owner: Api, alice: User) -> None:
    answer = await owner.post("rooms", {"name": "The Mill", "team": ["planner", "builder"], "fail_fast": True})
    assert answer.status == 201
    created = answer.json()
    assert created == {"id": created["id"], "slug": "the-mill", "url": "http://testserver/rooms/the-mill/"}
    found = Room.objects.get(slug="the-mill")
    assert (found.team, found.fail_fast) == (["planner", "builder"], True)
    assert Membership.objects.get(room=found).user == alice
    assert (await owner.get("rooms/the-mill")).json()["agents"][0]["role"] == "planner"


@pytest.mark.parametrize(
    "body", [{"name": ""}, {"name": "x", "team": []}, {"name": "x", "team": "user"}, {"name": "a\nb\0"}, {"name": "x" * 121}, {}]
)
async def test_a_room_that_cannot_be_meant_is_refused(body: dict[str, Any], owner: Api) -> None:
    answer = await owner.post("rooms", body)
    assert (answer.status, answer.code) == (400, "invalid")
    assert Room.objects.count() == 1


async def test_rooms_are_those_one_is_a_member_of(owner: Api, as_user: As, room: Room, bob: User, charlie: User) -> None:
    await in_db(make_room, charlie, name="Elsewhere")
    mine = [{"id": room.pk, "slug": "demo", "name": "Demo"}]
    assert (await owner.get("rooms")).json() == {"rooms": mine}
    assert (await as_user(bob).get("rooms")).json() == {"rooms": mine}
    assert [found["slug"] for found in (await as_user(charlie).get("rooms")).json()["rooms"]] == ["elsewhere"]
    assert (await Api(agent_token(room, "builder")).get("rooms")).json() == {"rooms": mine}


async def test_a_rooms_status_has_its_agents_and_its_unfinished_tasks(owner: Api, room: Room) -> None:
    task, _, _ = make_held_task(room)
    make_task(room, status=TaskStatus.COMPLETED)
    status = (await owner.get("rooms/demo")).json()
    assert status["room"] == {"id": room.pk, "slug": "demo", "name": "Demo"}
    assert status["tasks"] == [{"id": task.pk, "status": "in_progress", "assigned_role": "builder", "attempt": 1, "holder": "builder"}]
    assert [found["role"] for found in status["agents"]] == ["builder", "reviewer"]
    builder = status["agents"][0]
    assert (builder["kind"], builder["status"], builder["task"], builder["waiting"]) == ("custom", "working", task.pk, False)
    assert builder["desired_state"] is builder["machine"] is builder["run"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", builder["lease_expires_at"])
    assert status["machines"] == []


async def test_a_room_is_found_by_id_and_by_slug(owner: Api, room: Room) -> None:
    assert (await owner.get(f"rooms/{room.pk}")).json() == (await owner.get("rooms/demo")).json()


@pytest.mark.parametrize(
    "reference", ["nowhere", "999", "0", "00", "-1", "9" * 30, "a b", "%00", "demo%00", "%ED%A0%80", "%FF", "ÿ", "x" * 3000]
)
async def test_an_unknown_room_is_404_however_it_is_written(reference: str, owner: Api) -> None:
    answer = await owner.get(f"rooms/{reference}")
    assert (answer.status, answer.code) == (404, "no_such_room")


@pytest.mark.scenario(76)
async def test_a_stranger_cannot_tell_a_room_from_no_room(as_user: As, room: Room, charlie: User) -> None:
    stranger = as_user(charlie)
    hidden, missing = await stranger.get("rooms/demo"), await stranger.get("rooms/none")
    assert (hidden.status, hidden.code) == (missing.status, missing.code) == (404, "no_such_room")
    assert hidden.json()["error"]["message"].replace("demo", "none") == missing.json()["error"]["message"]


@pytest.mark.scenario(76)
async def test_a_viewer_sees_and_cannot_act(as_user: As, room: Room, vera: User) -> None:
    viewer = as_user(vera)
    assert (await viewer.get("rooms/demo")).status == 200
    answer = await viewer.post("rooms/demo/messages", {"text": "let me"})
    assert (answer.status, answer.code) == (403, "not_allowed")
    assert not Message.objects.exists()


async def test_an_owner_adds_a_member(owner: Api, room: Room, charlie: User) -> None:
    answer = await owner.post("rooms/demo/members", {"username": "charlie", "role": "viewer"})
    assert (answer.status, answer.json()) == (201, {"username": "charlie", "role": "viewer"})
    unknown = await owner.post("rooms/demo/members", {"username": "nobody"})
    assert (unknown.status, unknown.code) == (404, "not_found")
    wrong = await owner.post("rooms/demo/members", {"username": "charlie", "role": "king"})
    assert (wrong.status, wrong.code) == (400, "invalid")


# --- messages, tasks, backlog


async def test_a_message_becomes_a_task_of_the_role_it_is_sent_to(owner: Api, room: Room) -> None:
    first = await owner.post("rooms/demo/messages", {"text": "build"})
    second = await owner.post("rooms/demo/messages", {"text": "review", "to": "reviewer"})
    assert (first.status, first.json()["status"]) == (201, "pending")
    assert list(Task.objects.values_list("assigned_role", flat=True)) == ["builder", "reviewer"]
    assert second.json() == {"message": Message.objects.latest("pk").pk, "task": Task.objects.latest("pk").pk, "status": "pending"}
    listed = (await owner.get("rooms/demo/messages?after=0")).json()
    assert [(found["text"], found["from"], found["kind"]) for found in listed["messages"]] == [
        ("build", "alice", "chat"),
        ("review", "alice", "chat"),
    ]
    assert listed["last"] == second.json()["message"]


async def test_an_unknown_role_is_refused_with_the_valid_ones(owner: Api, room: Room) -> None:
    answer = await owner.post("rooms/demo/messages", {"text": "cook", "to": "cook"})
    assert (answer.status, answer.code) == (404, "no_such_role")
    assert answer.json()["error"]["allowed"] == ["builder", "reviewer"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid"),
        ({"text": ""}, 400, "invalid"),
        ({"text": " \n"}, 400, "invalid"),
        ({"text": 5}, 400, "invalid"),
        ({"text": "a\0b"}, 400, "invalid"),
        ({"text": "\ud800"}, 400, "invalid"),
        ({"text": "x", "to": "\0"}, 400, "invalid"),
        ({"text": "ä" * (128 * 1024) + "x"}, 413, "too_large"),
        ({"text": "x" * (3 * 1024 * 1024)}, 413, "too_large"),
    ],
)
async def test_a_text_that_cannot_be_kept_is_refused_and_nothing_is_written(
    body: dict[str, Any], status: int, code: str, owner: Api, room: Room
) -> None:
    before = counts()
    answer = await owner.post("rooms/demo/messages", body)
    assert (answer.status, answer.code) == (status, code)
    assert counts() == before


async def test_a_text_of_exactly_the_limit_is_kept(owner: Api, room: Room) -> None:
    text = "ä" * (128 * 1024)
    assert (await owner.post("rooms/demo/messages", {"text": text})).status == 201
    assert Message.objects.get().text == text


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"text", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b'"text"', b'{"text": "x"', b'{"text": NaN}']
)
async def test_what_is_no_json_object_is_400(raw: bytes, owner: Api, room: Room) -> None:
    answer = await owner.post("rooms/demo/messages", raw=raw)
    assert (answer.status, answer.code) == (400, "invalid")


async def test_pages_of_messages_go_on_where_the_last_one_ended(owner: Api, room: Room) -> None:
    for number in range(5):
        make_message(room, f"m{number}")
    newest = (await owner.get("rooms/demo/messages?limit=2")).json()
    assert [found["text"] for found in newest["messages"]] == ["m3", "m4"]
    first = (await owner.get("rooms/demo/messages?after=0&limit=2")).json()
    following = (await owner.get(f"rooms/demo/messages?after={first['last']}&limit=2")).json()
    assert [found["text"] for page in (first, following) for found in page["messages"]] == ["m0", "m1", "m2", "m3"]
    assert (await owner.get(f"rooms/demo/messages?after={newest['last']}")).json() == {"messages": [], "last": newest["last"]}


@pytest.mark.parametrize(
    "query", ["after=-1", "after=x", f"after={2**63}", f"after={'9' * 50}", "limit=0", "limit=501", "wait=-1", "wait=nan", "after=%00"]
)
async def test_a_page_that_cannot_be_meant_is_400(query: str, owner: Api, room: Room) -> None:
    answer = await owner.get(f"rooms/demo/events?{query}")
    assert (answer.status, answer.code) == (400, "invalid")


async def test_tasks_are_the_unfinished_then_the_newest_finished(owner: Api, room: Room) -> None:
    done = make_task(room, status=TaskStatus.COMPLETED)
    pending = make_task(room)
    queued = [make_task(room, status=TaskStatus.QUEUED) for _ in range(2)]
    found = (await owner.get("rooms/demo/tasks")).json()["tasks"]
    assert [task["id"] for task in found] == [pending.pk, *(task.pk for task in queued), done.pk]
    assert [task["position"] for task in found] == [None, 1, 2, None]
    only = (await owner.get("rooms/demo/tasks?status=queued")).json()["tasks"]
    assert [task["id"] for task in only] == [task.pk for task in queued]
    odd = await owner.get("rooms/demo/tasks?status=quued")
    assert (odd.status, odd.code) == (400, "invalid")
    assert "queued" in odd.json()["error"]["allowed"]


async def test_a_task_shows_its_chain(owner: Api, room: Room) -> None:
    task, _, claim = make_held_task(room)
    await owner.post(f"rooms/demo/claims/{claim.key}/handoff", {"next_role": "reviewer", "text": "done"})
    chain = (await owner.get(f"rooms/demo/tasks/{task.pk}")).json()
    assert [(found["assigned_role"], found["status"]) for found in chain["chain_tasks"]] == [
        ("builder", "completed"),
        ("reviewer", "pending"),
    ]
    assert (chain["chain_state"], chain["chain_reason"]) == ("open", None)


@pytest.mark.scenario(99)
async def test_a_chain_that_somebody_ended_says_who_and_why(owner: Api, room: Room) -> None:
    task = make_task(room)
    await owner.post(f"rooms/demo/tasks/{task.pk}/cancel", {"reason": "not needed any more"})
    chain = (await owner.get(f"rooms/demo/tasks/{task.pk}")).json()
    reason = f"task {task.pk} of builder closed by alice: not needed any more"
    assert (chain["chain_state"], chain["chain_reason"]) == ("failed", reason)


@pytest.mark.parametrize("task_id", ["0", "-1", "x", str(2**63), "9" * 100, "1.5", "%00"])
async def test_a_task_id_that_cannot_be_one_is_4xx(task_id: str, owner: Api, room: Room) -> None:
    for answer in [await owner.get(f"rooms/demo/tasks/{task_id}"), await owner.post(f"rooms/demo/tasks/{task_id}/cancel")]:
        assert answer.status in (400, 404)


async def test_an_unknown_task_is_404(owner: Api, room: Room, charlie: User) -> None:
    elsewhere = make_task(await in_db(make_room, charlie, name="Elsewhere"))
    for task_id in (999, elsewhere.pk):
        for answer in [await owner.get(f"rooms/demo/tasks/{task_id}"), await owner.post(f"rooms/demo/tasks/{task_id}/cancel")]:
            assert (answer.status, answer.code) == (404, "no_such_task")


async def test_an_act_on_a_task_answers_with_the_task(owner: Api, room: Room) -> None:
    task = make_task(room)
    answer = await owner.post(f"rooms/demo/tasks/{task.pk}/cancel", {"reason": "not needed"})
    assert answer.status == 200
    assert answer.json()["task"]["status"] == "closed"
    event = Event.objects.latest("pk")
    assert (event.trigger, event.actor, event.reason) == ("cancel_task", "alice", "not needed")


async def test_an_act_from_the_wrong_state_names_the_state_and_the_possible_moves(owner: Api, room: Room) -> None:
    task = make_task(room, status=TaskStatus.COMPLETED)
    before = counts()
    answer = await owner.post(f"rooms/demo/tasks/{task.pk}/retry")
    assert (answer.status, answer.code) == (409, "wrong_state")
    error = answer.json()["error"]
    assert error["current"] == "completed"
    assert error["allowed"] == []
    assert "retry" in error["message"]
    assert counts() == before


async def test_an_unknown_act_is_refused_with_the_known_ones(owner: Api, room: Room) -> None:
    answer = await owner.post(f"rooms/demo/tasks/{make_task(room).pk}/explode")
    assert (answer.status, answer.code) == (400, "invalid")
    assert "cancel" in answer.json()["error"]["allowed"]


async def test_a_backlog_item_waits_until_it_is_moved_and_is_closed_with_a_reason_only(owner: Api, room: Room) -> None:
    answer = await owner.post("rooms/demo/backlog", {"text": "later", "to": "reviewer", "priority": 3})
    assert answer.status == 201
    task = answer.json()["task"]
    assert (task["status"], task["assigned_role"], task["priority"]) == ("backlog", "reviewer", 3)
    blank = await owner.post(f"rooms/demo/tasks/{task['id']}/cancel", {"reason": " "})
    assert (blank.status, blank.code) == (400, "invalid")
    moved = await owner.post(f"rooms/demo/tasks/{task['id']}/move_to_queue")
    assert moved.json()["task"]["status"] == "pending"


@pytest.mark.parametrize("priority", [2**31, -(2**63), 10**400, 1.5, "x"])
async def test_a_priority_that_cannot_be_kept_is_400(priority: Any, owner: Api, room: Room) -> None:
    answer = await owner.post("rooms/demo/backlog", {"text": "later", "priority": priority})
    assert (answer.status, answer.code) == (400, "invalid")


# --- faults


async def test_without_its_database_the_api_asks_to_come_back(owner: Api, room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(api_module, "send_message", away)
    monkeypatch.setattr(api_module, "room_status", away)
    for answer in [await owner.post("rooms/demo/messages", {"text": "x"}), await owner.get("rooms/demo")]:
        assert (answer.status, answer.code) == (503, "unavailable")
        assert float(answer.headers["retry-after"]) > 0


async def test_livez_answers_always_and_readyz_while_it_serves(live: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await ask("GET", "/livez")).status == 200
    assert (await ask("GET", "/readyz")).status == 503, "no pulse yet"
    Pulse.objects.create(pk=1)
    ready = await ask("GET", "/readyz")
    assert (ready.status, ready.body) == (200, b"ok\n")
    monkeypatch.setattr(ending, "ending", True)
    assert (await ask("GET", "/readyz")).status == 503
    assert (await ask("GET", "/livez")).status == 200
