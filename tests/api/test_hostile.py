"""What nobody honest sends: refused or harmless, never a fault of ours."""

from itertools import product
from urllib.parse import quote

import pytest
from django.contrib.auth.models import User
from django.test import Client

from chatroom.models import Message, Room
from tests.factories import make_held_task, make_task

from .conftest import Api, ask
from .test_access import API, BODIES, PAGES, fill, signed_in

pytestmark = [pytest.mark.usefixtures("live"), pytest.mark.scenario(80)]
NASTY = [
    "\0",
    "a\0b",
    "\ud800",
    "%s",
    "../../etc",
    "9" * 40,
    "-1",
    "0",
    "<script>",
    "'; DROP TABLE",
    "\u202e",
    "ÿ" * 300,
    "{}",
    "*",
    " ",
    ".",
]
NASTY_TEXTS = ["\0", "\ud800", "\udfff tail", "x\0"]


def in_path(value: str) -> str:
    return quote(value.encode(errors="surrogatepass"), safe="")


async def test_nasty_words_in_an_api_path_are_4xx(owner: Api, room: Room) -> None:
    task, _, claim = make_held_task(room)
    usual = {
        "room": "demo",
        "task_id": task.pk,
        "claim": claim.key,
        "role": "builder",
        "act": "reset",
        "name": "laptop-7",
        "command_id": "1",
    }
    wrong = []
    for operation in API:
        method, template = operation.split(" ")
        body = None if method == "GET" else BODIES.get(operation, {})
        for place, word in product([name for name in usual if f"{{{name}}}" in template], NASTY):
            path = template.format(**{**usual, place: in_path(word)})
            answer = await ask(method, f"/api/v1/{path}", body, token=owner.token, idempotency_key="k")
            if not 400 <= answer.status < 500:
                wrong.append(f"{operation}, {place}={word!r}: {answer.status} {answer.body[:200]!r}")
    assert not wrong, "\n".join(wrong)


async def test_nasty_words_in_every_field_are_refused_or_harmless(owner: Api, room: Room) -> None:
    _, _, claim = make_held_task(room)
    wrong = []
    for operation, body in BODIES.items():
        method, template = operation.split(" ")
        for name, word in product(body, [*NASTY_TEXTS, ["a"], {"a": 1}, 5, None, True, 1e400, "x" * 300_000]):
            path = template.format(room="demo", claim=claim.key)
            answer = await ask(method, f"/api/v1/{path}", {**body, name: word}, token=owner.token)
            if answer.status >= 500 or (name == "text" and word in NASTY_TEXTS and answer.status < 300):
                wrong.append(f"{operation}, {name}={str(word)[:40]!r}: {answer.status} {answer.body[:200]!r}")
    assert not wrong, "\n".join(wrong)
    assert not any("\0" in text for text in Message.objects.values_list("text", flat=True))


def test_nasty_words_in_a_page_path_are_no_fault_of_ours(room: Room, alice: User) -> None:
    client, wrong = signed_in(alice), []
    usual = {"slug": "demo", "task_id": str(make_task(room).pk), "message_id": "1", "before": "5", "role": "builder", "act": "leave"}
    for operation in PAGES:
        method, route = operation.split(" ", 1)
        for place, word in product([name for name in usual if f":{name}>" in route], NASTY):
            response = client.generic(method, fill(route, {**usual, place: in_path(word)}))
            if response.status_code >= 500:
                wrong.append(f"{operation}, {place}={word!r}: {response.status_code}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("word", ["\0", "a\0b", "\ud800", "x" * 300_000, "\u202e<script>"])
def test_nasty_words_in_a_pages_fields_are_no_fault_of_ours(word: str, room: Room, alice: User) -> None:
    client: Client = signed_in(alice)
    fields = {
        "text": word,
        "to": word,
        "reason": word,
        "name": word,
        "team": "custom",
        "roles": word,
        "username": word,
        "role": word,
        "code": word,
    }
    content = "&".join(f"{name}={in_path(value)}" for name, value in fields.items())
    paths = [
        "rooms/demo/messages/",
        "rooms/demo/backlog/",
        f"rooms/demo/tasks/{make_task(room).pk}/cancel/",
        "rooms/demo/members/",
        "rooms/",
        "device/",
    ]
    for path in [*paths, "rooms/demo/agents/builder/leave/", "sign-in/"]:
        response = client.post(f"/{path}", content, content_type="application/x-www-form-urlencoded")
        assert response.status_code < 500, f"{path}: {response.status_code}"


@pytest.mark.parametrize("header", ["\0", "ü" * 100, "Bearer " + "x" * 50_000, "Bearer \x00", "Bearer \xff"])
async def test_nasty_tokens_are_401(header: str, room: Room) -> None:
    assert (await ask("GET", "/api/v1/rooms", authorization=header)).status == 401


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/rooms/demo/nothing", "/api/", "/api/v1/../admin/"])
async def test_an_unknown_endpoint_is_404_in_json(path: str, owner: Api) -> None:
    answer = await ask("GET", path, token=owner.token)
    assert (answer.status, answer.code) == (404, "not_found")


async def test_a_page_that_is_not_there_is_404_for_people(room: Room) -> None:
    answer = await ask("GET", "/nothing")
    assert (answer.status, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")


async def test_a_name_that_is_not_ours_is_refused_in_words(room: Room) -> None:
    answer = await ask("POST", "/api/v1/device", {}, host="evil.example")
    assert (answer.status, answer.code) == (400, "invalid")
    assert "evil.example" in answer.json()["error"]["message"]


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "TRACE", "PROPFIND"])
async def test_another_method_is_405_in_the_shape_of_every_error(method: str, owner: Api, room: Room) -> None:
    answer = await ask(method, "/api/v1/rooms/demo", token=owner.token)
    assert (answer.status, answer.code, answer.headers["allow"]) == (405, "wrong_method", "GET")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"] == {
        "code": "wrong_method",
        "message": f"{method} /api/v1/rooms/demo: expected GET",
        "current": None,
        "allowed": ["GET"],
    }


@pytest.mark.parametrize("authorization", ["", "Basic YTpi", "Bearer unknown"])
async def test_who_has_no_token_is_told_to_sign_in(authorization: str, room: Room) -> None:
    answer = await ask("GET", "/api/v1/rooms", authorization=authorization)
    assert (answer.status, answer.code) == (401, "not_signed_in")
    assert answer.json()["error"]["message"].endswith("sign in with the login command")
