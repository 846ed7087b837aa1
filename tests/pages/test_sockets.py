"""Who gets a page's socket, who is put out, and the rooms list on every page."""

from collections.abc import Callable

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session

from agents.models import AgentStatus
from chatroom.db import in_db
from chatroom.models import Membership, Room
from chatroom.routing import websocket_application
from chatroom.services.rooms import add_member, create_room
from tests.factories import make_agent

from .conftest import closing_code, last_event, make_agent_dead, open_socket, path_of, say

pytestmark = pytest.mark.usefixtures("live")
Cookies = Callable[[User], str]
S = AgentStatus


async def refused_with(path: str, cookie: str) -> int:
    headers = [(b"host", b"testserver"), (b"origin", b"http://testserver"), (b"cookie", cookie.encode())]
    socket = WebsocketCommunicator(websocket_application, path, headers=headers)
    await socket.connect(timeout=5)
    return await closing_code(socket)


BOTH = ["/ws/rooms/demo/", "/ws/me/"]


@pytest.mark.scenario(77)
async def test_nobody_is_told_to_sign_in(room: Room) -> None:
    for path in BOTH:
        for cookie in ["", "sessionid=abc", "a=b; c"]:
            assert await refused_with(path, cookie) == 4401, (path, cookie)


@pytest.mark.scenario(77)
async def test_a_stranger_finds_no_room(room: Room, charlie: User, cookies: Cookies) -> None:
    for reference in ["demo", str(room.pk), "999999", "nowhere", "a%00b"]:
        assert await refused_with(f"/ws/rooms/{reference}/", cookies(charlie)) == 4404, reference


@pytest.mark.scenario(77)
async def test_a_page_of_another_site_gets_no_socket(room: Room, alice: User, cookies: Cookies) -> None:
    for path in BOTH:
        for origin in [b"https://elsewhere.example", b"http://testserver:9999", b"null", b""]:
            headers = [(b"host", b"testserver"), (b"origin", origin), (b"cookie", cookies(alice).encode())]
            is_connected, _ = await WebsocketCommunicator(websocket_application, path, headers=headers).connect(timeout=5)
            assert not is_connected, (path, origin)


async def test_whoever_is_removed_hears_nothing_more(room: Room, bob: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket(path_of(room), cookies(bob), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(Membership.objects.filter(user=bob).delete)
        assert await closing_code(browser.socket) == 4404


async def test_whoever_may_do_something_else_now_gets_a_new_page(room: Room, bob: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket(path_of(room), cookies(bob), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(add_member, room, user=bob, role="viewer", actor="alice")
        assert await closing_code(browser.socket) == 4405


async def test_signing_out_ends_the_sockets_of_that_sign_in(room: Room, bob: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket(BOTH[0], cookies(bob)) as browser, open_socket(BOTH[1], cookies(bob)) as other:
        await browser.receive()
        await other.receive()
        await in_db(Session.objects.all().delete)
        assert await closing_code(browser.socket) == 4401
        assert await closing_code(other.socket) == 4401


async def test_an_inactive_person_is_put_out(room: Room, bob: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket(path_of(room), cookies(bob), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(User.objects.filter(pk=bob.pk).update, is_active=False)
        assert await closing_code(browser.socket) == 4404


async def test_other_rooms_are_not_told(room: Room, alice: User, cookies: Cookies, slow_recheck: None) -> None:
    other = await in_db(create_room, "Other", team="solo", owner=alice)
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await say(other, alice, "a secret of another room")
        message = await say(room, alice, "here")
        await browser.receive_with(f"message-{message}")
    assert "a secret of another room" not in browser.everything


async def test_a_ping_is_answered(room: Room, alice: User, cookies: Cookies) -> None:
    async with open_socket(path_of(room), cookies(alice), last=None) as browser:
        await browser.say(ping=123.4)
        assert (await browser.receive()).startswith('<span id="pong" data-ping="123.4"')


JUNK = [" ", "null", "[]", "{", '{"last": "x"}', '{"ping": "<b>"}', "9" * 5000, "[" * 1500, '{"last": -1}']


async def test_junk_from_a_page_is_ignored(room: Room, alice: User, cookies: Cookies) -> None:
    async with open_socket(path_of(room), cookies(alice), last=None) as browser:
        for number, junk in enumerate(JUNK):
            await browser.socket.send_to(text_data=junk)
            await browser.say(ping=number)
            await browser.receive_with(f'<span id="pong" data-ping="{number}"')


@pytest.mark.scenario(71)
async def test_the_rooms_list_follows_what_goes_on(room: Room, alice: User, cookies: Cookies) -> None:
    await in_db(make_agent, room, status=S.READY)
    async with open_socket("/ws/me/", cookies(alice)) as browser:
        assert "nav-row is-ready" in await browser.receive()
        await in_db(make_agent_dead, room)
        html = await browser.receive_with(f'<li id="nav-room-{room.pk}" hx-swap-oob="morph">')
    assert "nav-row is-dead" in html
    assert '<span class="nav-count attention" aria-hidden="true">1</span>' in html


async def test_a_new_room_appears_in_the_list(room: Room, alice: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket("/ws/me/", cookies(alice)) as browser:
        await browser.receive()
        other = await in_db(create_room, "Another", team="solo", owner=alice)
        assert f'id="nav-room-{other.pk}"' in await browser.receive_with('<ul id="nav-rooms"')


async def test_nothing_is_sent_when_no_row_changed(room: Room, alice: User, cookies: Cookies, quick_recheck: None) -> None:
    async with open_socket("/ws/me/", cookies(alice)) as browser:
        await browser.receive()
        assert await browser.socket.receive_nothing(timeout=1)
