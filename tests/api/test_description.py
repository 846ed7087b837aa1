"""The description of the API: complete, as the protocol promises, and readable without anybody else's help."""

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from chatroom import api_docs
from chatroom.models import Room
from tests.factories import agent_token

from .conftest import Api, ask

pytestmark = pytest.mark.usefixtures("live")


async def test_the_openapi_document_lists_every_endpoint(owner: Api) -> None:
    document = (await owner.get("openapi.json")).json()
    described = {re.sub(r"\{\w+\}", "*", path) for path in document["paths"]}
    routed = {"/" + re.sub(r"<[^>]+>", "*", route) for route in routes(get_resolver()) if route.startswith("api/v1/")}
    assert routed - {"/api/v1/", "/api/v1/openapi.json", "/api/v1/docs"} == described


async def test_the_readable_description_needs_nothing_from_elsewhere(owner: Api) -> None:
    answer = await owner.get("docs")
    assert answer.status == 200
    loaded = re.findall(r"<(?:script|link)[^>]*?(?:src|href)=\"([^\"]+)", answer.body.decode())
    assert loaded
    assert all(path.startswith("/static/") for path in loaded)
    assert re.findall(r"<script(?![^>]*(?:src=|application/json))", answer.body.decode()) == []
    assert "script-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.scenario(77)
async def test_the_description_is_for_who_is_signed_in(room: Room, charlie: User) -> None:
    for token in ("", "chatroom_person_forged"):
        refusal = await ask("GET", "/api/v1/openapi.json", token=token)
        assert (refusal.status, refusal.code) == (401, "not_signed_in")
        sent = await ask("GET", "/api/v1/docs", token=token)
        assert (sent.status, sent.headers["location"]) == (302, "/sign-in/?next=/api/v1/docs")
    browser = Client()
    browser.force_login(charlie, backend="django.contrib.auth.backends.ModelBackend")
    cookie = f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"
    for path in api_docs.PATHS:
        assert (await ask("GET", path, token=agent_token(room, "builder"))).status == 200
        assert (await ask("GET", path, cookie=cookie)).status == 200


def routes(resolver: URLResolver, before: str = "") -> list[str]:
    found: list[str] = []
    for entry in resolver.url_patterns:
        route = before + str(entry.pattern)
        found += [route] if isinstance(entry, URLPattern) else routes(entry, route)
    return found


async def test_every_endpoint_the_protocol_promises_is_there(owner: Api) -> None:
    text = (Path(settings.BASE_DIR) / "docs" / "protocol.md").read_text()
    promised = re.findall(r"^\| `(GET|POST|PUT) ([^`?]+)", text, re.MULTILINE)
    assert len(promised) > 20
    document = (await owner.get("openapi.json")).json()
    described = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    patterns = [re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(operation))) for operation in described]
    missing = [
        operation
        for operation in promised
        if not any(found.fullmatch(f"{operation[0]} /api/v1/{operation[1].strip()}") for found in patterns)
    ]
    assert not missing
