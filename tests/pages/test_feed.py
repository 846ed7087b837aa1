"""The sockets of open pages: everything that changed, once, to those who may see it."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from agents.services import dismiss_agent, leave_agent
from chatroom import feed as feed_module
from chatroom.db import in_db
from chatroom.feed import Audience, Fragment, Look, feeds, parts, read_room, render
from chatroom.models import Event, MemberRole, Room
from chatroom.services.messages import send_message
from chatroom.services.rooms import add_member
from chatroom.services.tasks import TASK_ACTS
from tests.factories import make_agent, make_held_task, make_message, make_user

from .conftest import cursor_of, last_event, make_agent_dead, open_socket, path_of, say

pytestmark = pytest.mark.usefixtures("live")
Cookies = Callable[[User], str]
S = AgentStatus


def stop_agent(room: Room) -> None:
    leave_agent(room.pk, role="builder", actor="alice")


@pytest.mark.scenario(71)
async def test_a_message_is_pushed_with_its_task_and_chain(room: Room, alice: User, cookies: Cookies, slow_recheck: None) -> None:
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        message = await say(room, alice, "Fix **it**")
        html = await browser.receive_with("Fix")
    assert f'<div hx-swap-oob="beforeend:#messages"><li id="message-{message}"' in html
    assert "<strong>it</strong>" in html
    assert '<section id="work"' in html
    assert "step step-waiting" in html
    assert cursor_of(html) == await in_db(last_event, room)


@pytest.mark.scenario(72)
async def test_a_page_that_comes_back_gets_exactly_what_it_missed(room: Room, alice: User, cookies: Cookies) -> None:
    first = await say(room, alice, "seen before")
    seen = await in_db(last_event, room)
    missed = [await say(room, alice, f"missed {number}") for number in range(3)]
    async with open_socket(path_of(room), cookies(alice), last=seen) as browser:
        html = await browser.receive()
    assert [int(found) for found in re.findall(r'<li id="message-(\d+)"', html)] == missed
    assert f"message-{first}" not in html
    assert cursor_of(html) == await in_db(last_event, room)


@pytest.mark.scenario(72)
async def test_pages_at_different_places_each_get_their_own(room: Room, alice: User, bob: User, cookies: Cookies) -> None:
    old = await in_db(last_event, room)
    early = await say(room, alice, "early")
    middle = await in_db(last_event, room)
    late = await say(room, alice, "late")
    async with open_socket(path_of(room), cookies(alice), last=old) as one, open_socket(path_of(room), cookies(bob), last=middle) as other:
        assert [f"message-{early}" in (first := await one.receive()), f"message-{late}" in first] == [True, True]
        assert [f"message-{early}" in (second := await other.receive()), f"message-{late}" in second] == [False, True]


@pytest.mark.scenario(72)
async def test_nothing_is_missed_or_doubled_while_much_happens(room: Room, alice: User, cookies: Cookies, slow_recheck: None) -> None:
    seen = await in_db(last_event, room)
    async with open_socket(path_of(room), cookies(alice), last=seen) as browser:
        sent = [await say(room, alice, f"number {number}") for number in range(25)]
        while not browser.frames or cursor_of(browser.frames[-1]) < await in_db(last_event, room):
            await browser.receive()
    assert [int(found) for found in re.findall(r'<li id="message-(\d+)"', browser.everything)] == sent
    cursors = [cursor_of(html) for html in browser.frames]
    assert cursors == sorted(cursors)


async def test_a_page_that_missed_very_much_gets_the_panes_as_they_are(
    room: Room, alice: User, cookies: Cookies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "MOST_EVENTS", 3)
    seen = await in_db(last_event, room)
    for number in range(3):
        await say(room, alice, f"missed {number}")
    async with open_socket(path_of(room), cookies(alice), last=seen) as browser:
        html = await browser.receive()
    assert '<ol id="messages"' in html
    assert all(f"missed {number}" in html for number in range(3))
    assert cursor_of(html) == await in_db(last_event, room)


@pytest.mark.scenario(71)
@pytest.mark.parametrize(("act", "status"), [(stop_agent, "offline"), (make_agent_dead, "dead")])
async def test_a_change_of_an_agent_redraws_its_row_and_no_other(
    room: Room, alice: User, cookies: Cookies, slow_recheck: None, act: Callable[[Room], object], status: str
) -> None:
    await in_db(make_agent, room, status=S.READY)
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(act, room)
        html = await browser.receive_with('id="agent-builder"')
    assert f'class="agent is-{status}"' in html
    assert 'id="agent-reviewer"' not in html


@pytest.mark.scenario(73)
async def test_a_death_puts_the_agent_on_top_of_every_open_page(room: Room, alice: User, bob: User, cookies: Cookies) -> None:
    await in_db(make_agent, room, status=S.READY)
    seen = await in_db(last_event, room)
    async with open_socket(path_of(room), cookies(alice), last=seen) as one, open_socket(path_of(room), cookies(bob), last=seen) as other:
        await one.receive()
        await other.receive()
        await in_db(make_agent_dead, room)
        for browser in (one, other):
            html = await browser.receive_with('id="attention-builder"')
            assert "exit 1" in html
        await in_db(dismiss_agent, room.pk, role="builder", actor="bob")
        assert "dismissed by bob" in await one.receive_with('class="agent is-offline"')


@pytest.mark.scenario(76)
async def test_a_viewer_gets_no_buttons_and_a_member_does(room: Room, bob: User, vera: User, cookies: Cookies) -> None:
    seen = await in_db(last_event, room)
    async with (
        open_socket(path_of(room), cookies(vera), last=seen) as viewer,
        open_socket(path_of(room), cookies(bob), last=seen) as member,
    ):
        await say(room, bob, "Fix it")
        shown, acted = await viewer.receive_with("Fix it"), await member.receive_with("Fix it")
    assert "<form" not in shown
    assert "/cancel/" in acted


async def test_a_fragment_is_rendered_once_for_all_who_see_the_same(
    room: Room, alice: User, bob: User, cookies: Cookies, slow_recheck: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered: list[tuple[str, str]] = []
    original = feed_module.render_fragment

    def counted(fragment: Fragment, *, audience: Audience) -> str:
        rendered.append((fragment.key, audience.role))
        return original(fragment, audience=audience)

    seen, jar = await in_db(last_event, room), cookies(bob)
    async with open_socket(path_of(room), jar, last=seen) as one, open_socket(path_of(room), jar, last=seen) as other:
        await one.receive()
        await other.receive()
        monkeypatch.setattr(feed_module, "render_fragment", counted)
        await say(room, bob, "Fix it")
        first, second = await one.receive_with("Fix it"), await other.receive_with("Fix it")
    assert first.partition('<span id="cursor"')[0] == second.partition('<span id="cursor"')[0]
    assert rendered
    assert len(rendered) == len(set(rendered))


@pytest.mark.scenario(71)
async def test_a_lost_hint_costs_a_recheck_and_nothing_else(
    room: Room, alice: User, cookies: Cookies, deaf: None, quick_recheck: None
) -> None:
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        message = await say(room, alice, "nobody was told")
        assert f"message-{message}" in await browser.receive_with("nobody was told")


async def test_a_renewed_lease_shows_without_an_event(room: Room, alice: User, cookies: Cookies, quick_recheck: None) -> None:
    agent = await in_db(make_agent, room, status=S.READY, lease=30)
    events = await in_db(last_event, room)
    later = now() + timedelta(seconds=90)
    async with open_socket(path_of(room), cookies(alice), last=events) as browser:
        await browser.receive()
        await asyncio.sleep(0)
        for _ in range(2):  # the first re-check only learns what is there
            await in_db(Agent.objects.filter(pk=agent.pk).update, lease_expires_at=later, last_seen_at=later)
            later += timedelta(seconds=1)
            html = await browser.receive_with('id="agent-builder"')
    assert 'data-appears="' in html
    assert cursor_of(html) == events


async def test_an_overdue_lease_shows_without_any_write(room: Room, alice: User, cookies: Cookies, quick_recheck: None) -> None:
    await in_db(make_agent, room, status=S.READY, lease=0.8)
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        while not re.search(r'<p class="unconfirmed" data-appears="[^"]+">', browser.everything):
            await browser.receive()
    assert cursor_of(browser.frames[-1]) == await in_db(last_event, room)


def test_rendering_asks_the_database_nothing(room: Room, alice: User) -> None:
    make_held_task(room)
    make_agent(room, "reviewer", status=S.DEAD, error_message="exit 1")
    make_message(room)
    send_message(room.pk, text="Fix it", author=alice)
    add_member(room, user=make_user("dora"), role=MemberRole.VIEWER, actor="alice")
    for events, everything in ((list(Event.objects.all()), False), ([], True)):
        fragments = [fragment for part in parts() for fragment in part.read(Look(room, events, is_new=True, everything=everything))]
        with CaptureQueriesContext(connection) as queries:
            html = render(fragments, audience=Audience(MemberRole.OWNER, "http://testserver"), drawn={})
        assert "Fix it" in html
        assert [query["sql"] for query in queries] == []


def test_a_pass_costs_the_same_however_many_pages_are_open(room: Room, alice: User) -> None:
    start = last_event(room)
    send_message(room.pk, text="Fix it", author=alice)
    read_room(room.pk, standings={(start, False)}, memory={}, people=None)
    with CaptureQueriesContext(connection) as queries:
        read_room(room.pk, standings={(start, False)}, memory={}, people=None)
    assert len(queries) <= 40


async def test_every_act_of_a_person_is_pushed(room: Room, alice: User, cookies: Cookies, slow_recheck: None) -> None:
    message = await in_db(send_message, room.pk, text="Fix it", author=alice)
    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(TASK_ACTS["cancel"], room.pk, task_id=message.task.pk, actor="alice", reason="not needed")
        html = await browser.receive_with("step step-closed")
    assert f'id="chain-{message.message.pk}"' in html


async def test_the_feed_ends_with_its_last_page(room: Room, alice: User, cookies: Cookies) -> None:
    async with open_socket(path_of(room), cookies(alice)) as browser:
        await browser.receive()
        running = feeds.by_room[room.pk].running
        assert running is not None
    await asyncio.wait([running], timeout=5)
    assert room.pk not in feeds.by_room
    assert running.done()


async def test_a_failing_read_is_survived_and_caught_up(
    room: Room, alice: User, cookies: Cookies, quick_recheck: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the database is away")

    async with open_socket(path_of(room), cookies(alice), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        monkeypatch.setattr(feed_module, "read_room", broken)
        message = await say(room, alice, "while it was away")
        monkeypatch.setattr(feed_module, "read_room", read_room)
        assert f"message-{message}" in await browser.receive_with("while it was away")
