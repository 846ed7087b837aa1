"""Every URL and every socket × everybody who may knock. A new one without an entry here fails."""

import json
import re
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from agents.models import Agent, AgentStatus, Claim, run_incarnation
from chatroom.models import Membership, Room, Task, TaskStatus, Token, TokenKind
from chatroom.routing import websocket_application
from chatroom.urls import api
from machines.models import Command, Machine, Placement, Run
from tests.factories import agent_token, make_agent, make_held_task, make_machine, make_placement, make_room, make_task, token_of

from .conftest import PATIENCE, Answer, ask, knock

pytestmark = [pytest.mark.usefixtures("live"), pytest.mark.scenario(77)]

# What each may do, in this order. "ok": whatever the answer, it is not about who is asking.
WHO = ["nobody", "stranger", "viewer", "member", "owner", "agent", "machine"]
ANYBODY = "ok ok ok ok ok ok ok"
SIGNED_IN = "401 ok ok ok ok ok ok"
PEOPLE = "401 ok ok ok ok 403 403"
READERS = "401 404 ok ok ok ok 404"
MEMBERS = "401 404 403 ok ok 403 404"
OWNERS = "401 404 403 403 ok 403 404"
# The builder's program, or a person who may act in the room and plays it.
SPEAKERS = "401 404 403 ok ok ok 404"

API = {
    "GET whoami": SIGNED_IN,
    "POST device": ANYBODY,
    "POST device/token": ANYBODY,
    "POST logout": SIGNED_IN,
    "GET rooms": SIGNED_IN,
    "POST rooms": PEOPLE,
    "GET rooms/{room}": READERS,
    "GET rooms/{room}/events": READERS,
    "GET rooms/{room}/messages": READERS,
    "POST rooms/{room}/messages": MEMBERS,
    "GET rooms/{room}/tasks": READERS,
    "GET rooms/{room}/tasks/{task_id}": READERS,
    "POST rooms/{room}/tasks/{task_id}/{act}": MEMBERS,
    "POST rooms/{room}/backlog": MEMBERS,
    "POST rooms/{room}/members": OWNERS,
    "POST rooms/{room}/claims/{claim}/start": SPEAKERS,
    "POST rooms/{room}/claims/{claim}/progress": SPEAKERS,
    "POST rooms/{room}/claims/{claim}/complete": SPEAKERS,
    "POST rooms/{room}/claims/{claim}/handoff": SPEAKERS,
    "POST rooms/{room}/claims/{claim}/fail": SPEAKERS,
    "POST rooms/{room}/agents/{role}/leave": SPEAKERS,
    "POST rooms/{room}/agents/{role}/dismiss": MEMBERS,
    "GET rooms/{room}/agents/{role}/prompt": READERS,
    "PUT rooms/{room}/agents/{role}": OWNERS,
    "POST rooms/{room}/agents/{role}/start": MEMBERS,
    "POST rooms/{room}/agents/{role}/stop": MEMBERS,
    "POST rooms/{room}/agents/{role}/restart": MEMBERS,
    "POST rooms/{room}/agents/{role}/abort": MEMBERS,
    "GET machines": PEOPLE,
    "POST machines": PEOPLE,
    "POST machines/enrolments": PEOPLE,
    "GET machines/{name}": "401 404 404 404 ok 403 403",
    "POST machines/{name}/revoke": "401 404 404 404 ok 403 403",
    "POST machines/{name}/ping": "401 404 404 404 ok 403 403",
    "POST machines/{name}/status": "401 404 404 404 ok 403 403",
    "POST commands/abort_runs": PEOPLE,
    "GET commands/{command_id}": "401 404 404 404 404 403 403",
}
BODIES: dict[str, Any] = {
    "POST device": {"client": "test"},
    "POST device/token": {"device_code": "x"},
    "POST rooms": {"name": "Another"},
    "POST rooms/{room}/messages": {"text": "x"},
    "POST rooms/{room}/backlog": {"text": "x"},
    "POST rooms/{room}/members": {"username": "vera", "role": "viewer"},
    "POST machines": {"name": "laptop"},
    **{
        f"POST rooms/{{room}}/claims/{{claim}}/{act}": {"text": "x", "next_role": "user"}
        for act in ("progress", "complete", "handoff", "fail")
    },
}

# Pages, for people who are signed in; the others are sent to sign in.
PAGE_READERS = "login 404 ok ok ok"
PAGE_MEMBERS = "login 404 403 ok ok"
PAGE_OWNERS = "login 404 403 403 ok"
PAGE_PEOPLE = "login ok ok ok ok"
PAGE_ANYBODY = "ok ok ok ok ok"
PAGES = {
    "GET livez": PAGE_ANYBODY,
    "GET readyz": PAGE_ANYBODY,
    "GET api/v1/docs": PAGE_PEOPLE,
    "GET api/v1/openapi.json": "401 ok ok ok ok",
    "GET ": PAGE_PEOPLE,
    "GET sign-in/": PAGE_ANYBODY,
    "GET sign-in/<str:secret>/": "401 401 401 401 401",
    "POST sign-out/": PAGE_ANYBODY,
    "GET device/": PAGE_PEOPLE,
    "POST rooms/": PAGE_PEOPLE,
    "GET rooms/<slug:slug>/": PAGE_READERS,
    "POST rooms/<slug:slug>/messages/": PAGE_MEMBERS,
    "GET rooms/<slug:slug>/messages/before/<int:before>/": PAGE_READERS,
    "GET rooms/<slug:slug>/messages/<int:message_id>/": PAGE_READERS,
    "POST rooms/<slug:slug>/backlog/": PAGE_MEMBERS,
    "GET rooms/<slug:slug>/tasks/<int:task_id>/history/": PAGE_READERS,
    "POST rooms/<slug:slug>/tasks/<int:task_id>/<slug:act>/": PAGE_MEMBERS,
    "POST rooms/<slug:slug>/members/": PAGE_OWNERS,
    "GET rooms/<slug:slug>/agents/<slug:role>/history/": PAGE_READERS,
    "GET rooms/<slug:slug>/agents/<slug:role>/prompt/": PAGE_READERS,
    "POST rooms/<slug:slug>/agents/<slug:role>/<slug:act>/": PAGE_MEMBERS,
    "POST rooms/<slug:slug>/agents/<slug:role>/run/<slug:act>/": PAGE_MEMBERS,
    "GET rooms/<slug:slug>/agents/<slug:role>/configuration/": PAGE_OWNERS,
    "POST rooms/<slug:slug>/agents/<slug:role>/configuration/": PAGE_OWNERS,
    "GET rooms/<slug:slug>/agents/<slug:role>/log/": PAGE_READERS,
    "GET machines/": PAGE_PEOPLE,
    "POST machines/": PAGE_PEOPLE,
    # Nobody but its owner sees this machine: no agent of a room of theirs lives there.
    "POST machines/<int:machine_id>/ping/": "login 404 404 404 ok",
    "POST machines/<int:machine_id>/revoke/": "login 404 404 404 ok",
}
SOCKETS = {
    "ws/agent/": "agents",
    "ws/machine/": "machines",
    "ws/me/": "browsers",
    "ws/rooms/<str:room>/": "browsers of members",
    "ws/rooms/<str:room>/agents/<str:role>/log/": "browsers of members",
}
NAMES = {"stranger": "charlie", "viewer": "vera", "member": "bob", "owner": "alice"}
OPEN_ADMIN = {"admin/login/", "admin/logout/"}


@pytest.fixture
def tokens(room: Room, alice: User, bob: User, vera: User, charlie: User) -> dict[str, str]:
    make_room(charlie, name="Elsewhere")
    machine = Token.objects.issue(kind=TokenKind.MACHINE, name="laptop-7", subject_id=1)[1]
    people = {"stranger": charlie, "viewer": vera, "member": bob, "owner": alice}
    return {
        "nobody": "",
        **{who: token_of(user) for who, user in people.items()},
        "agent": agent_token(room, "builder"),
        "machine": machine,
    }


@pytest.fixture
def browsers(room: Room, alice: User, bob: User, vera: User, charlie: User) -> dict[str, Client]:
    return {
        "nobody": Client(),
        "stranger": signed_in(charlie),
        "viewer": signed_in(vera),
        "member": signed_in(bob),
        "owner": signed_in(alice),
    }


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user, backend="django.contrib.auth.backends.ModelBackend")
    return client


def set_up(room: Room) -> dict[str, str]:
    """What the placeholders of the paths stand for: a claim that is held, and a task that can be cancelled."""
    Claim.objects.all().delete()
    Task.objects.filter(room=room).delete()
    held, agent, claim = make_held_task(room)
    Claim.objects.update(incarnation=run_incarnation(1))
    Agent.objects.filter(pk=agent.pk).update(incarnation=run_incarnation(1))
    backlog = make_task(room, status=TaskStatus.QUEUED)
    for model in (Command, Placement, Run, Machine):
        model.objects.all().delete()  # type: ignore[attr-defined]
    Agent.objects.filter(room=room).update(kind="custom")
    machine = make_machine(Membership.objects.get(room=room, role="owner").user)
    return {
        "room": room.slug,
        "slug": room.slug,
        "claim": claim.key,
        "task_id": str(backlog.pk),
        "message_id": str(held.message_id),
        "before": "99999",
        "role": "builder",
        "act": "cancel",
        "name": "laptop-7",
        "machine_id": str(machine.pk),
        "command_id": "1",
        "secret": "wrong",
    }


def is_about_who(answer: Answer) -> bool:
    if answer.status in (401, 403):
        return True
    return answer.status >= 400 and answer.code in ("no_such_room", "role_not_yours")


def operations() -> set[str]:
    paths = api.get_openapi_schema()["paths"]
    return {f"{method.upper()} {path.removeprefix('/api/v1/')}" for path, methods in paths.items() for method in methods}


def test_every_endpoint_has_its_entry() -> None:
    assert operations() == set(API)


async def test_the_api_answers_each_as_the_table_says(room: Room, tokens: dict[str, str]) -> None:
    wrong = []
    # Last, for its tokens are gone then.
    for operation, expected in sorted(API.items(), key=lambda entry: entry[0] == "POST logout"):
        for who, outcome in zip(WHO, expected.split(), strict=True):
            answer = await ask_as(tokens[who], operation, room)
            got = str(answer.status) if is_about_who(answer) or outcome == str(answer.status) else "ok"
            if got != outcome or answer.status >= 500:
                wrong.append(f"{operation} as {who}: {answer.status} {answer.body[:200]!r}, expected {outcome}")
    assert not wrong, "\n".join(wrong)


async def ask_as(token: str, operation: str, room: Room) -> Answer:
    method, template = operation.split(" ")
    values = set_up(room) | ({"act": "ping"} if "machines" in template else {})
    if template.endswith(("/start", "/stop", "/restart", "/abort")) and "/agents/" in template:
        make_placement(Machine.objects.get(), Agent.objects.get(room=room, role="builder"))
    body = None if method == "GET" else BODIES.get(operation, {})
    return await ask(method, "/api/v1/" + template.format(**values), body, token=token)


def routes(resolver: URLResolver, before: str = "") -> list[str]:
    found: list[str] = []
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        found += [route] if isinstance(entry, URLPattern) else routes(entry, route)
    return found


def test_every_page_has_its_entry() -> None:
    pages = {route for route in routes(get_resolver()) if not route.startswith(("api/v1/", "admin/"))}
    assert pages | {"api/v1/docs", "api/v1/openapi.json"} == {operation.split(" ", 1)[1] for operation in PAGES}


def fill(route: str, values: dict[str, str]) -> str:
    return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: values.get(found[1], "1"), route)


def test_a_page_answers_each_as_the_table_says(room: Room, browsers: dict[str, Client]) -> None:
    wrong = []
    for operation, expected in PAGES.items():
        method, route = operation.split(" ", 1)
        for who, outcome in zip(list(browsers), expected.split(), strict=True):
            values = set_up(room)
            if "agents" in route:
                values["act"] = "leave"
            if "/run/" in route:
                make_placement(Machine.objects.get(), Agent.objects.get(room=room, role="builder"))
                values["act"] = "stop"
            path = fill(route, values)
            response = browsers[who].generic(method, path)
            if route == "sign-out/" and who in NAMES:
                browsers[who] = signed_in(User.objects.get(username=NAMES[who]))
            if not is_as_said(response, outcome, route=route):
                wrong.append(f"{operation} as {who}: {response.status_code}, expected {outcome}")
    assert not wrong, "\n".join(wrong)


def is_as_said(response: Any, outcome: str, *, route: str) -> bool:
    status = response.status_code
    if outcome == "login":
        return status == 302 and response["Location"].startswith("/sign-in/")
    if outcome == "ok":
        return status not in (401, 403, 404) and (status < 500 or route == "readyz")
    return bool(status == int(outcome))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_admin_site_is_for_staff(method: str, room: Room, browsers: dict[str, Client]) -> None:
    found = [route for route in routes(get_resolver()) if route.startswith("admin/") and route not in OPEN_ADMIN]
    assert len(found) > 20
    for route in found:
        if "(?P" in route:
            continue
        path = fill(route, {})
        for who, client in browsers.items():
            response = client.generic(method, path)
            assert response.status_code in (302, 403, 404, 405), f"{method} {path} for {who}: {response.status_code}"
            assert response.status_code != 302 or "/login/" in response["Location"], f"{path}: {response['Location']}"


def sockets() -> set[str]:
    # URLRouter keeps Django's own patterns.
    return {str(route.pattern) for route in websocket_application.routes}


def test_every_socket_has_its_entry() -> None:
    assert sockets() == set(SOCKETS)


async def is_opened(communicator: WebsocketCommunicator) -> bool:
    is_open, _ = await communicator.connect(timeout=PATIENCE)
    await communicator.disconnect(timeout=PATIENCE)
    return bool(is_open)


async def test_the_agents_socket_opens_for_every_token_and_joins_for_who_may_play_the_role(room: Room, tokens: dict[str, str]) -> None:
    got = []
    for who in WHO:
        make_agent(room, status=AgentStatus.OFFLINE)
        communicator = knock(tokens[who])
        is_open, _ = await communicator.connect(timeout=PATIENCE)
        if not is_open:
            got.append("401")
            continue
        await communicator.send_json_to({"type": "hello", "protocol": 1, "room": "demo", "role": "builder", "incarnation": who})
        answer = await communicator.receive_json_from(timeout=PATIENCE)
        codes = {"no_such_room": "404", "not_allowed": "403", "role_not_yours": "409"}
        got.append(codes[answer["error"]["code"]] if "error" in answer else "ok")
        await communicator.disconnect(timeout=PATIENCE)
    # The role is a custom agent's: only people speak for it.
    assert got == ["401", "404", "403", "ok", "ok", "409", "404"]


async def test_the_machines_socket_refuses_who_has_no_token(room: Room) -> None:
    assert not await is_opened(knock("", "/ws/machine/"))
    assert not await is_opened(knock("wrong", "/ws/machine/"))


Codes = dict[str, int | None]


async def closing_code(path: str, *, cookie: str, origin: bytes = b"http://testserver") -> int | None:
    """With what the server closes a browser's socket; None when it stays open."""
    headers = [(b"host", b"testserver"), (b"origin", origin), (b"cookie", cookie.encode())]
    communicator = WebsocketCommunicator(websocket_application, path, headers=headers)
    is_open, code = await communicator.connect(timeout=PATIENCE)
    if not is_open:
        return code or 1000
    await communicator.send_to(text_data=json.dumps({"ping": 1}))
    message = await communicator.receive_output(timeout=PATIENCE)
    await communicator.disconnect(timeout=PATIENCE)
    return int(message["code"]) if message["type"] == "websocket.close" else None


@pytest.fixture
def cookies(browsers: dict[str, Client]) -> dict[str, str]:
    name = settings.SESSION_COOKIE_NAME
    return {who: f"{name}={client.cookies[name].value}" if name in client.cookies else "" for who, client in browsers.items()}


async def test_a_rooms_socket_is_for_its_members(room: Room, cookies: dict[str, str]) -> None:
    got: Codes = {who: await closing_code("/ws/rooms/demo/", cookie=cookie) for who, cookie in cookies.items()}
    assert got == {"nobody": 4401, "stranger": 4404, "viewer": None, "member": None, "owner": None}
    assert await closing_code("/ws/rooms/nowhere/", cookie=cookies["owner"]) == 4404


async def test_the_output_of_an_agent_is_for_the_members_of_its_room(room: Room, cookies: dict[str, str]) -> None:
    path = "/ws/rooms/demo/agents/builder/log/"
    for who in ("viewer", "member", "owner"):
        communicator = WebsocketCommunicator(
            websocket_application,
            path,
            headers=[(b"host", b"testserver"), (b"origin", b"http://testserver"), (b"cookie", cookies[who].encode())],
        )
        assert (await communicator.connect(timeout=PATIENCE))[0]
        assert await communicator.receive_nothing(timeout=0.1)
        await communicator.disconnect(timeout=PATIENCE)
    assert await closing_code(path, cookie="") == 4401
    assert await closing_code(path, cookie=cookies["stranger"]) == 4404
    assert await closing_code("/ws/rooms/demo/agents/nobody/log/", cookie=cookies["owner"]) == 4404


async def test_ones_own_socket_is_for_who_is_signed_in(room: Room, cookies: dict[str, str]) -> None:
    got: Codes = {who: await closing_code("/ws/me/", cookie=cookie) for who, cookie in cookies.items()}
    assert got == {"nobody": 4401, "stranger": None, "viewer": None, "member": None, "owner": None}


@pytest.mark.parametrize("path", ["/ws/me/", "/ws/rooms/demo/", "/ws/rooms/demo/agents/builder/log/"])
async def test_a_browsers_socket_from_another_site_is_refused(path: str, room: Room, cookies: dict[str, str]) -> None:
    assert await closing_code(path, cookie=cookies["owner"], origin=b"http://evil.example") is not None


@pytest.mark.parametrize("path", ["/ws/me/", "/ws/rooms/demo/", "/ws/rooms/demo/agents/builder/log/"])
async def test_a_token_opens_no_browsers_socket(path: str, room: Room, tokens: dict[str, str]) -> None:
    communicator = knock(tokens["owner"], path, origin="http://testserver")
    is_open, code = await communicator.connect(timeout=PATIENCE)
    if is_open:
        assert (await communicator.receive_output(timeout=PATIENCE))["code"] == 4401
    else:
        assert code


async def test_a_session_is_no_way_into_the_api(room: Room, cookies: dict[str, str]) -> None:
    assert (await ask("GET", "/api/v1/rooms", cookie=cookies["owner"])).status == 401
