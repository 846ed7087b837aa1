"""What the room's page shows."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from agents.models import AgentStatus, Claim
from agents.services import report_progress
from chatroom.models import Message, MessageKind, Notice, Origin, Room, TaskStatus
from chatroom.services.messages import send_message
from tests.agents.playing import take
from tests.factories import make_agent, make_held_task, make_message, make_task, principal_of

SignIn = Callable[[User], Client]
S = AgentStatus
SHOWN = {
    S.OFFLINE: ("hollow", "OFFLINE"),
    S.READY: ("disc", "READY"),
    S.WORKING: ("square", "WORKING"),
    S.RESTARTING: ("ring", "RESTARTING"),
    S.DEAD: ("cross", "DEAD"),
    S.DEAD_FAILED_REVIVE: ("cross", "DEAD (UNRECOVERABLE)"),
}


def show(page: Client) -> str:
    answer = page.get("/rooms/demo/")
    assert answer.status_code == 200
    return answer.text


def agent_row(html: str, role: str = "builder") -> str:
    return html[html.index(f'id="agent-{role}"') : html.index(f'id="lane-{role}"')]


@pytest.mark.parametrize("status", S.values)
def test_a_status_is_a_shape_and_a_word(page: Client, room: Room, status: str) -> None:
    make_agent(room, status=status)
    shape, word = SHOWN[S(status)]
    row = agent_row(show(page))
    assert f'class="agent is-{status}"' in row
    assert re.search(rf'<i class="shape {shape}" aria-hidden="true"></i>{re.escape(word)}</span>', row)


def test_a_working_agent_says_on_what(page: Client, room: Room) -> None:
    task, _, _ = make_held_task(room, text="Rename cart.total")
    row = agent_row(show(page))
    assert f"task {task.pk}" in row
    assert "Rename cart.total" in row


@pytest.mark.scenario(73)
@pytest.mark.parametrize("status", [S.DEAD, S.DEAD_FAILED_REVIVE])
def test_a_dead_agent_stands_on_top_with_reason_and_button(page: Client, room: Room, status: str) -> None:
    make_agent(room, "reviewer", status=status, error_message="exit 127: command not found")
    html = show(page)
    card = html[html.index('id="attention"') : html.index('id="agents-head"')]
    assert "exit 127: command not found" in card
    assert "Copy start command" in card
    assert "/rooms/demo/agents/reviewer/dismiss/" in card
    assert html.index('id="attention-reviewer"') < html.index('id="agent-builder"')


def test_the_unrecoverable_come_before_the_dead(page: Client, room: Room) -> None:
    make_agent(room, "builder", status=S.DEAD)
    make_agent(room, "reviewer", status=S.DEAD_FAILED_REVIVE)
    html = show(page)
    assert html.index('id="attention-reviewer"') < html.index('id="attention-builder"')


def test_nothing_that_needs_attention_takes_no_room(page: Client, room: Room) -> None:
    assert re.search(r'<section id="attention"[^>]* hidden>', show(page))


def test_a_failed_task_and_one_to_review_need_attention(page: Client, room: Room) -> None:
    failed = make_task(room, status=TaskStatus.FAILED, failure_reason="the disk is full")
    review = make_task(room, "reviewer", status=TaskStatus.PENDING_USER_REVIEW, origin=Origin.BACKLOG)
    html = show(page)
    card = html[html.index('id="attention"') : html.index('id="agents-head"')]
    assert "the disk is full" in card
    assert f"/tasks/{failed.pk}/retry/" in card
    assert f"/tasks/{review.pk}/approve/" in card


def test_what_people_were_told_stays_until_it_is_over(page: Client, room: Room) -> None:
    task = make_task(room)
    Notice.objects.create(room=room, task=task, episode="e", text="nobody plays builder", created_at=now())
    assert "nobody plays builder" in show(page)
    type(task).objects.filter(pk=task.pk).update(status=TaskStatus.CLOSED)
    assert "nobody plays builder" not in show(page)


def test_ready_but_not_waiting_is_said(page: Client, room: Room) -> None:
    make_agent(room, status=S.READY, waiting_since=None)
    assert "not waiting yet" in agent_row(show(page))
    make_agent(room, status=S.READY, waiting_since=now())
    assert "not waiting yet" not in agent_row(show(page))


def test_an_overdue_lease_is_said_at_once(page: Client, room: Room) -> None:
    make_agent(room, status=S.READY, lease=-5)
    assert re.search(r'<p class="unconfirmed" data-appears="[^"]+">unconfirmed since', agent_row(show(page)))


def test_a_valid_lease_is_watched_by_the_page_itself(page: Client, room: Room) -> None:
    make_agent(room, status=S.READY, lease=50)
    assert re.search(r'<p class="unconfirmed" data-appears="[^"]+" hidden>', agent_row(show(page)))


def silence_of(html: str) -> str:
    found = re.search(r'<p class="unconfirmed is-silent"[^>]*>', agent_row(html))
    return found[0] if found else ""


def test_an_agent_that_says_nothing_of_its_task_for_long_is_warned_about(page: Client, room: Room, alice: User) -> None:
    assert silence_of(show(page)) == ""
    send_message(room.pk, text="do it", author=alice)
    key = take(room, alice)
    assert silence_of(show(page)).endswith(" hidden>"), "the page itself shows it once it is time"
    long_ago = now() - timedelta(seconds=settings.RUN_SILENCE_WARNING + 1)
    Claim.objects.update(delivered_at=long_ago, started_at=long_ago)
    assert silence_of(show(page)).endswith('">')
    assert "no word about its task since" in agent_row(show(page))
    report_progress(room.pk, key, text="half way", principal=principal_of(alice))
    assert silence_of(show(page)).endswith(" hidden>")


def test_an_agent_to_start_has_its_command_to_copy(page: Client, room: Room) -> None:
    row = agent_row(show(page))
    assert 'data-copy="chatroom wait_for_task demo --role builder --server http://testserver"' in row


def test_the_prompt_can_be_copied(page: Client, room: Room) -> None:
    html = page.get("/rooms/demo/agents/builder/prompt/", headers={"HX-Request": "true"}).text
    assert "You are builder" in html
    assert html.count("data-copy=") == 2


def test_an_agents_history_tells_what_happened_and_why(page: Client, room: Room) -> None:
    make_agent(room, status=S.DEAD)
    page.post("/rooms/demo/agents/builder/dismiss/")
    html = page.get("/rooms/demo/agents/builder/history/").text
    assert "dismissed by alice" in html


@pytest.mark.parametrize("kind", MessageKind.values)
def test_every_kind_of_message_has_its_look(page: Client, room: Room, kind: str) -> None:
    message = Message.objects.create(room=room, sender="builder", text="words of the builder", kind=kind)
    html = show(page)
    row = html[html.index(f'id="message-{message.pk}"') :][:1500]
    assert f"kind-{kind}" in row
    assert "words of the builder" in row


@pytest.mark.scenario(28)
def test_a_late_result_is_marked(page: Client, room: Room) -> None:
    Message.objects.create(room=room, sender="builder", text="done after all", kind=MessageKind.LATE_RESULT)
    assert "late result" in show(page)


def test_progress_of_one_task_stands_under_one_name(page: Client, room: Room) -> None:
    task = make_task(room)
    for text in ("one", "two"):
        Message.objects.create(room=room, sender="builder", text=text, kind=MessageKind.PROGRESS, task=task)
    Message.objects.create(room=room, sender="reviewer", text="three", kind=MessageKind.PROGRESS, task=task)
    classes = re.findall(r'class="message kind-progress([^"]*)"', show(page))
    assert ["continues" in found for found in classes] == [False, True, False]


@pytest.mark.scenario(30)
def test_the_chain_tells_who_has_it_and_who_is_next(page: Client, room: Room, alice: User) -> None:
    sent = send_message(room.pk, text="Fix it", author=alice)
    html = show(page)
    chain = html[html.index(f'id="chain-{sent.message.pk}"') :][:1500]
    assert re.search(r'step step-waiting"[^>]*>builder', chain)
    assert 'step step-next">reviewer' in chain
    assert f"task {sent.task.pk} · pending" in chain


def test_queued_work_shows_its_place(page: Client, room: Room) -> None:
    make_task(room)
    make_task(room, status=TaskStatus.QUEUED)
    make_task(room, status=TaskStatus.QUEUED)
    html = show(page)
    assert "queued · 1." in html
    assert "queued · 2." in html
    assert "1 active · 2 queued" in html


@pytest.mark.scenario(76)
def test_a_viewer_sees_everything_and_no_button(sign_in: SignIn, room: Room, vera: User) -> None:
    make_held_task(room)
    make_agent(room, "reviewer", status=S.DEAD)
    make_task(room, "reviewer", status=TaskStatus.FAILED, failure_reason="the disk is full")
    html = show(sign_in(vera))
    assert "the disk is full" in html
    assert "You are a viewer" in html
    forms = re.findall(r'<form[^>]*action="([^"]+)"', html)
    assert forms == ["/sign-out/"]


@pytest.mark.scenario(76)
def test_only_an_owner_is_offered_to_add_people(sign_in: SignIn, room: Room, alice: User, bob: User) -> None:
    assert "/rooms/demo/members/" in show(sign_in(alice))
    assert "/rooms/demo/members/" not in show(sign_in(bob))


def test_the_page_needs_no_inline_script_and_no_inline_style(page: Client, room: Room) -> None:
    make_held_task(room)
    make_message(room, "```diff\n+x\n```")
    answer = page.get("/rooms/demo/")
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son[a-z]+=|javascript:", answer.text)
    assert "'unsafe-inline'" not in answer["Content-Security-Policy"]
    assert "'unsafe-eval'" not in answer["Content-Security-Policy"]


def test_ids_are_unique(page: Client, room: Room) -> None:
    make_held_task(room)
    make_agent(room, "reviewer", status=S.DEAD)
    make_task(room, "reviewer", status=TaskStatus.FAILED)
    ids = re.findall(r'\sid="([^"]+)"', show(page))
    assert sorted(ids) == sorted(set(ids))


def test_earlier_messages_are_a_press_away(page: Client, room: Room) -> None:
    messages = [make_message(room, f"text {number}") for number in range(70)]
    html = show(page)
    assert f"/rooms/demo/messages/before/{messages[10].pk}/" in html
    earlier = page.get(f"/rooms/demo/messages/before/{messages[10].pk}/", headers={"HX-Request": "true"}).text
    assert [f"message-{message.pk}" for message in messages[:10]] == re.findall(r'<li id="(message-\d+)"', earlier)


def test_a_cut_text_is_there_in_full(page: Client, room: Room) -> None:
    message = make_message(room, "x" * 30_000)
    assert f"/rooms/demo/messages/{message.pk}/" in show(page)
    whole = page.get(f"/rooms/demo/messages/{message.pk}/")
    assert (len(whole.text), whole["Content-Type"]) == (30_000, "text/plain; charset=utf-8")


def test_the_number_of_queries_does_not_grow_with_the_room(
    page: Client, room: Room, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(20):
        make_task(room, status=TaskStatus.QUEUED)
        make_task(room, status=TaskStatus.FAILED)
    make_held_task(room)
    page.get("/rooms/demo/")
    with django_assert_max_num_queries(45):
        page.get("/rooms/demo/")


def test_a_name_for_the_time_of_a_status(page: Client, room: Room) -> None:
    make_agent(room, status=S.WORKING, status_since=now() - timedelta(minutes=3, seconds=12))
    assert re.search(r'data-since="timer">3:1\d<', agent_row(show(page)))
