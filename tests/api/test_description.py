"""The description of the API: complete, as the protocol promises, and readable without anybody else's help."""

import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from chatroom import api_docs
from chatroom.models import Room
from tests.factories import agent_token, token_of

# Not through ASGI: its threads for pages would keep a connection to the test's database.
pytestmark = pytest.mark.django_db


@pytest.fixture
def client(alice: User) -> Client:
    return Client(headers={"authorization": f"Bearer {token_of(alice)}"})


def test_the_openapi_document_lists_every_endpoint(client: Client) -> None:
    document = client.get("/api/v1/openapi.json").json()
    described = {re.sub(r"\{\w+\}", "*", path) for path in document["paths"]}
    routed = {"/" + re.sub(r"<[^>]+>", "*", route) for route in routes(get_resolver()) if route.startswith("api/v1/")}
    assert routed - {"/api/v1/", "/api/v1/openapi.json", "/api/v1/docs"} == described


def test_the_readable_description_needs_nothing_from_elsewhere(client: Client) -> None:
    answer = client.get("/api/v1/docs")
    assert answer.status_code == 200
    loaded = re.findall(r"<(?:script|link)[^>]*?(?:src|href)=\"([^\"]+)", answer.text)
    assert loaded
    assert all(path.startswith("/static/") for path in loaded)
    assert re.findall(r"<script(?![^>]*(?:src=|application/json))", answer.text) == []
    assert "script-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.scenario(77)
def test_the_description_is_for_who_is_signed_in(room: Room, charlie: User) -> None:
    for headers in ({}, {"authorization": "Bearer chatroom_person_forged"}):
        refusal = Client(headers=headers).get("/api/v1/openapi.json")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (401, "not_signed_in")
        sent = Client(headers=headers).get("/api/v1/docs")
        assert (sent.status_code, sent["location"]) == (302, "/sign-in/?next=/api/v1/docs")
    browser, agent = Client(), Client(headers={"authorization": f"Bearer {agent_token(room, 'builder')}"})
    browser.force_login(charlie, backend="django.contrib.auth.backends.ModelBackend")
    for path in api_docs.PATHS:
        assert (browser.get(path).status_code, agent.get(path).status_code) == (200, 200)


@pytest.mark.parametrize("path", api_docs.PATHS)
async def test_the_description_goes_through_the_stack_that_knows_sessions(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatroom import asgi

    served: list[str] = []

    async def pages(scope: dict[str, Any], receive: Any, send: Any) -> None:
        served.append(scope["path"])

    monkeypatch.setattr(asgi, "page_application", pages)
    await asgi.http_application({"type": "http", "path": path}, None, None)
    assert served == [path]


def routes(resolver: URLResolver, before: str = "") -> list[str]:
    found: list[str] = []
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        found += [route] if isinstance(entry, URLPattern) else routes(entry, route)
    return found


def test_every_endpoint_the_protocol_promises_is_there(client: Client) -> None:
    text = (Path(settings.BASE_DIR) / "docs" / "protocol.md").read_text()
    promised = re.findall(r"^\| `(GET|POST|PUT) ([^`?]+)", text, re.MULTILINE)
    assert len(promised) > 20
    document = client.get("/api/v1/openapi.json").json()
    described = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    patterns = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation))) for operation in described]
    missing = [
        operation
        for operation in promised
        if not any(found.fullmatch(f"{operation[0]} /api/v1/{operation[1].strip()}") for found in patterns)
    ]
    assert not missing
