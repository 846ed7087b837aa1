from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client

from chatroom.models import DeviceGrant, GrantState, Room
from chatroom.services.tokens import issue_sign_in_link, start_device_grant

SignIn = Callable[[User], Client]


@pytest.mark.parametrize("path", ["/", "/device/", "/rooms/demo/", "/rooms/demo/messages/1/", "/rooms/demo/agents/builder/history/"])
def test_a_page_asks_nobody_to_sign_in_first(client: Client, room: Room, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer["Location"]) == (302, f"/sign-in/?next={path}")


def test_a_person_signs_in_with_a_password(client: Client, alice: User) -> None:
    answer = client.post("/sign-in/", {"username": "alice", "password": "correct-horse", "next": "/device/"})
    assert (answer.status_code, answer["Location"]) == (302, "/device/")


def test_a_wrong_password_is_said_and_the_name_kept(client: Client, alice: User) -> None:
    answer = client.post("/sign-in/", {"username": "alice", "password": "wrong"})
    assert answer.status_code == 200
    assert "do not fit together" in answer.text
    assert 'value="alice"' in answer.text


def test_signing_in_leads_to_no_foreign_place(client: Client, alice: User) -> None:
    answer = client.post("/sign-in/", {"username": "alice", "password": "correct-horse", "next": "https://elsewhere.example/"})
    assert answer["Location"] == "/"


def test_a_link_signs_in_once(client: Client, alice: User) -> None:
    path = issue_sign_in_link(alice)
    assert client.get(path)["Location"] == "/"
    assert client.get("/").context["user"] == alice
    refused = Client().get(path)
    assert refused.status_code == 401
    assert "used or is too old" in refused.text


def test_a_browser_that_looks_ahead_does_not_use_up_the_link(client: Client, alice: User) -> None:
    path = issue_sign_in_link(alice)
    assert client.get(path, headers={"Sec-Purpose": "prefetch"}).status_code == 204
    assert client.get(path).status_code == 302


def test_signing_out_needs_a_press(page: Client) -> None:
    assert page.get("/sign-out/").status_code == 405
    assert page.post("/sign-out/")["Location"] == "/sign-in/"
    assert page.get("/").status_code == 302


def test_a_terminal_is_approved_by_its_code(page: Client, alice: User) -> None:
    _, grant = start_device_grant("alice-laptop")
    shown = page.get("/device/", {"code": grant.user_code.lower().replace("-", " ")})
    assert grant.user_code in shown.text
    assert "alice-laptop" in shown.text
    assert page.post("/device/", {"code": grant.user_code, "decision": "approve"}).status_code == 302
    stored = DeviceGrant.objects.get()
    assert (stored.state, stored.user) == (GrantState.APPROVED, alice)


def test_looking_at_a_code_approves_nothing(page: Client) -> None:
    _, grant = start_device_grant("alice-laptop")
    page.get("/device/", {"code": grant.user_code, "decision": "approve"})
    assert DeviceGrant.objects.get().state == GrantState.PENDING


def test_a_terminal_is_denied(page: Client) -> None:
    _, grant = start_device_grant("alice-laptop")
    page.post("/device/", {"code": grant.user_code, "decision": "deny"})
    assert DeviceGrant.objects.get().state == GrantState.DENIED


def test_a_mistyped_code_is_said(page: Client) -> None:
    answer = page.post("/device/", {"code": "BBBB-BBBB", "decision": "approve"})
    assert answer.status_code == 404
    assert "no terminal is waiting with this code" in answer.text.lower()


def test_the_name_of_a_terminal_is_escaped(page: Client) -> None:
    _, grant = start_device_grant("<script>alert(1)</script>")
    assert "<script>alert" not in page.get("/device/", {"code": grant.user_code}).text
