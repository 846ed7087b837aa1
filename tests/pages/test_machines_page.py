"""The page of machines: what each person sees of them, and may do with them."""

import re
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils.timezone import now
from pytest_django import DjangoAssertNumQueries

from agents.models import Agent
from chatroom.db import in_db
from chatroom.models import Room, Token, TokenKind
from machines.enrolling import daemon_command
from machines.models import Act, Command, CommandState, Machine, MachineStatus
from machines.services.connection import change_status, machine_locked
from machines.services.pings import ask_machine, keep_answer
from machines.services.registration import redeem_enrolment
from tests.factories import make_agent, make_machine, make_placement, make_room

from .conftest import open_socket

SignIn = Callable[[User], Client]
Cookies = Callable[[User], str]
HTMX = {"HX-Request": "true"}
S = MachineStatus
BROKEN = {"name": "codex", "version": "", "models": [], "ok": False, "error": "harness codex: program not found: codex"}


@pytest.fixture
def machine(alice: User) -> Machine:
    return make_machine(alice, platform="Linux x86_64")


@pytest.fixture
def placed(machine: Machine, room: Room) -> Machine:
    """The builder of the room, whom bob and vera see too, lives there."""
    make_placement(machine, Agent.objects.get(room=room, role="builder"))
    return machine


def row_of(html: str, machine: Machine) -> str:
    found = re.search(rf'<li id="machine-{machine.pk}".*?</li>', html, re.DOTALL)
    assert found, "the machine is not on the page"
    return found[0]


def change(machine: Machine, trigger: str) -> None:
    with machine_locked(machine.pk) as locked:
        change_status(locked, trigger, reason="a test")


@pytest.mark.scenario(36)
def test_a_machine_is_shown_with_what_it_offers(page: Client, machine: Machine) -> None:
    Machine.objects.update(harnesses=[*machine.harnesses, BROKEN], slots=7)
    row = row_of(page.get("/machines/").text, machine)
    assert "laptop-7" in row
    assert re.search(r'<i class="shape disc" aria-hidden="true"></i>CONNECTED', row)
    assert re.search(r"last sign of life <time [^>]+>[^<]*</time> ago", row)
    assert "Linux x86_64 · daemon 0.2.0 · 7 slots" in row
    assert '<strong>demo</strong> <span class="muted">1.0</span>' in row
    assert '<strong>codex</strong> <span class="why">program not found: codex</span>' in row


@pytest.mark.parametrize(
    ("status", "look", "shape"), [(S.CONNECTED, "ready", "disc"), (S.UNRESPONSIVE, "restarting", "ring"), (S.DISCONNECTED, "dead", "cross")]
)
def test_a_status_of_a_machine_is_colour_shape_and_word(page: Client, alice: User, status: str, look: str, shape: str) -> None:
    machine = make_machine(alice, status=status)
    row = row_of(page.get("/machines/").text, machine)
    assert f'class="machine is-{look}" data-status="{status}"' in row
    assert f'<i class="shape {shape}" aria-hidden="true"></i>{status.upper()}' in row


def test_a_machine_that_never_came_says_so(page: Client, alice: User) -> None:
    machine = make_machine(alice, status=S.DISCONNECTED, last_seen_at=None, harnesses=[])
    row = row_of(page.get("/machines/").text, machine)
    assert "NEVER CAME" in row
    assert "no daemon has come yet" in row
    assert "/ping/" not in row


def test_the_agents_of_a_machine_stand_in_its_row(page: Client, placed: Machine) -> None:
    row = row_of(page.get("/machines/").text, placed)
    assert 'class="placed is-offline" href="/rooms/demo/#agent-builder"' in row


def test_what_lives_on_an_absent_machine_is_unconfirmed_and_what_is_offline_is_just_so(page: Client, placed: Machine, room: Room) -> None:
    make_placement(placed, make_agent(room, "reviewer"))
    Machine.objects.update(status=S.DISCONNECTED)
    row = row_of(page.get("/machines/").text, placed)
    assert "demo · offline<" in row.lower()
    assert "demo · ready, unconfirmed<" in row.lower()


def test_members_and_viewers_see_a_machine_of_their_room_without_buttons(sign_in: SignIn, placed: Machine, bob: User, vera: User) -> None:
    for user in (bob, vera):
        row = row_of(sign_in(user).get("/machines/").text, placed)
        assert "alice’s" in row
        assert "<form" not in row


def test_a_stranger_sees_no_machine_of_others(sign_in: SignIn, placed: Machine, charlie: User) -> None:
    html = sign_in(charlie).get("/machines/").text
    assert "laptop-7" not in html
    assert "No machine yet" in html


def test_agents_of_other_rooms_are_not_shown(sign_in: SignIn, placed: Machine, alice: User, bob: User) -> None:
    other = make_room(alice, name="Secret project")
    make_placement(placed, Agent.objects.get(room=other, role="builder"))
    assert "Secret project" not in sign_in(bob).get("/machines/").text
    assert "Secret project" in sign_in(alice).get("/machines/").text


def test_many_machines_cost_a_fixed_number_of_queries(
    page: Client, alice: User, room: Room, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for number in range(20):
        machine = make_machine(alice, f"build-{number}")
        make_placement(machine, Agent.objects.get(room=make_room(alice, name=f"Room {number}"), role="builder"))
    with django_assert_max_num_queries(25):
        page.get("/machines/")


def test_a_ping_is_asked_and_its_answer_stands_in_the_row(page: Client, machine: Machine) -> None:
    answer = page.post(f"/machines/{machine.pk}/ping/", headers=HTMX)
    assert (answer.status_code, answer.text.strip()) == (200, '<span class="done"></span>')
    assert 'data-ping-state="pending"' in row_of(page.get("/machines/").text, machine)
    command = Command.objects.get()
    keep_answer(machine.pk, command.pk, {})
    row = row_of(page.get("/machines/").text, machine)
    assert 'data-ping-state="completed"' in row
    assert re.search(r"answered in \d+ ms", row)


def test_a_ping_of_an_absent_machine_is_refused_in_words(page: Client, alice: User) -> None:
    machine = make_machine(alice, status=S.DISCONNECTED)
    answer = page.post(f"/machines/{machine.pk}/ping/", headers=HTMX)
    assert answer.status_code == 409
    assert "laptop-7 is disconnected" in answer.text


@pytest.mark.parametrize("act", ["ping", "revoke"])
def test_only_the_owner_of_a_machine_presses_its_buttons(sign_in: SignIn, placed: Machine, bob: User, charlie: User, act: str) -> None:
    path = f"/machines/{placed.pk}/{act}/"
    assert sign_in(bob).post(path).status_code == 403
    assert "only its owner" in sign_in(bob).post(path, headers=HTMX).text
    assert sign_in(charlie).post(path).status_code == 404
    assert not Command.objects.exists()
    assert Machine.objects.get().revoked_at is None


def test_an_answer_to_a_question_that_named_no_agents_does_not_give_them_up(page: Client, placed: Machine) -> None:
    answer = page.post(f"/machines/{placed.pk}/revoke/", headers=HTMX)
    assert answer.status_code == 409
    assert "still has agents (builder of demo)" in answer.text
    assert "still has agents" in page.post(f"/machines/{placed.pk}/revoke/", follow=True).text
    assert Machine.objects.get().revoked_at is None


def test_the_question_says_what_is_lost_with_a_machine_and_its_answer_revokes_it(page: Client, placed: Machine, room: Room) -> None:
    make_placement(placed, Agent.objects.get(room=room, role="reviewer"))
    row = row_of(page.get("/machines/").text, placed)
    assert "<strong>builder and 1 more live here</strong>: their processes are given up" in row
    given = dict(re.findall(r'type="hidden" name="(force)" value="(on)"', row))
    assert "laptop-7 was revoked." in page.post(f"/machines/{placed.pk}/revoke/", given, follow=True).text
    shown = page.get("/rooms/demo/").text
    assert shown.count("laptop-7 was revoked: this agent needs another machine") == 2
    assert 'data-opens="agent-more-builder agent-config-builder">Configure</a>' in shown
    assert "/run/start/" not in shown


def test_a_machine_without_agents_asks_less(page: Client, machine: Machine) -> None:
    row = row_of(page.get("/machines/").text, machine)
    assert "This can’t be undone." in row
    assert "given up" not in row
    assert 'name="force"' not in row


def test_the_form_of_an_agent_whose_machine_was_revoked_offers_the_others(page: Client, placed: Machine, alice: User) -> None:
    for name in ("desk", "shelf"):
        make_machine(alice, name)
    page.post(f"/machines/{placed.pk}/revoke/", {"force": "on"})
    form = page.get("/rooms/demo/agents/builder/configuration/").text
    assert '<option value="">choose one</option>' in form
    assert re.findall(r'<option value="(desk|shelf|laptop-7)"', form) == ["desk", "shelf"]


def test_a_revoked_machine_is_gone(page: Client, machine: Machine) -> None:
    answer = page.post(f"/machines/{machine.pk}/revoke/", follow=True)
    assert "laptop-7 was revoked." in answer.text
    assert 'id="machine-' not in answer.text


def test_the_number_of_machines_stands_on_every_page(page: Client, machine: Machine, room: Room, alice: User) -> None:
    make_machine(alice, "build-02", status=S.DISCONNECTED)
    for path in ("/", "/rooms/demo/", "/machines/"):
        html = page.get(path).text
        assert "1 of 2 machines" in html
        assert re.search(r'id="nav-machines".*?<span class="nav-count attention" aria-hidden="true">1/2</span>', html)


def test_adding_a_machine_shows_one_command_that_works_once(page: Client, alice: User) -> None:
    answer = page.post("/machines/", {"name": "build-03", "directory": "~/my agents"}, headers=HTMX)
    command = re.search(r'<code id="enrolment-command">(.*?)</code>', answer.text)
    assert command
    words = re.fullmatch(
        r"make setup &amp;&amp; mkdir -p ~/&#x27;my agents&#x27; &amp;&amp; .venv/bin/chatroom agent_daemon --server http://testserver "
        r"--token (\S+) --name build-03 --allow-dir ~/&#x27;my agents&#x27;",
        command[1],
    )
    assert words, command[1]
    machine, _ = redeem_enrolment(words[1], name="build-03", platform="Linux")
    assert machine.owner == alice


def test_without_javascript_the_command_stands_on_the_page(page: Client) -> None:
    assert "agent_daemon --server http://testserver --token chatroom_enrolment_" in page.post("/machines/", {"name": ""}).text


@pytest.mark.parametrize(
    ("name", "says"), [("laptop-7", "there is a machine laptop-7 already"), ("no spaces", "expected up to 60 letters")]
)
def test_a_name_that_can_not_be_is_refused_before_anybody_pastes_it(page: Client, machine: Machine, name: str, says: str) -> None:
    answer = page.post("/machines/", {"name": name}, headers=HTMX)
    assert answer.status_code in (400, 409)
    assert says in answer.text
    assert says.lower() in page.post("/machines/", {"name": name}).text.lower()
    assert not Token.objects.filter(kind=TokenKind.ENROLMENT).exists()


def test_what_is_typed_never_becomes_a_second_command() -> None:
    command = daemon_command("http://x/$(id)", name="a;b", directory="~/x; rm -rf /", token="t t")
    assert command.split(" && ")[1:] == [
        "mkdir -p ~/'x; rm -rf /'",
        ".venv/bin/chatroom agent_daemon --server 'http://x/$(id)' --token 't t' --name 'a;b' --allow-dir ~/'x; rm -rf /'",
    ]


# --- live


@pytest.mark.usefixtures("live")
@pytest.mark.scenario(38)
async def test_the_page_follows_a_machine_that_falls_silent_and_comes_back(placed: Machine, bob: User, cookies: Cookies) -> None:
    async with open_socket("/ws/me/?lists=machines,enrolments", cookies(bob)) as browser:
        first = await browser.receive()
        assert '<ul id="machines" class="card machines" hx-swap-oob="morph"><li id="machine-' in first
        assert "1 machine</span>" in first
        for trigger, word in [("miss", "UNRESPONSIVE"), ("disconnect", "DISCONNECTED"), ("connect", "CONNECTED")]:
            await in_db(change, placed, trigger)
            html = await browser.receive_with(f"</i>{word}")
            assert f'<li id="machine-{placed.pk}"' in html
            is_counted_anew = word != "DISCONNECTED"  # an unresponsive one counts as away already
            assert ('id="top-machines"' in html) == is_counted_anew


@pytest.mark.usefixtures("live")
async def test_other_pages_get_no_rows_of_machines(placed: Machine, bob: User, cookies: Cookies) -> None:
    async with open_socket("/ws/me/", cookies(bob)) as browser:
        first = await browser.receive()
    assert 'id="nav-machines"' in first
    assert f'id="machine-{placed.pk}"' not in first


@pytest.mark.usefixtures("live")
async def test_every_page_sees_the_outcome_of_a_ping(placed: Machine, alice: User, bob: User, cookies: Cookies) -> None:
    path = "/ws/me/?lists=machines"
    async with open_socket(path, cookies(alice)) as one, open_socket(path, cookies(bob)) as other:
        await one.receive()
        await other.receive()
        command = await in_db(ask_machine, placed, Act.PING, actor="alice")
        await one.receive_with('data-ping-state="pending"')
        await in_db(keep_answer, placed.pk, command.pk, {})
        for browser in (one, other):
            assert "answered in" in await browser.receive_with(f'data-ping-state="{CommandState.COMPLETED}"')


@pytest.mark.usefixtures("live")
async def test_a_machine_that_arrives_turns_its_invitation_green(page: Client, alice: User, cookies: Cookies) -> None:
    answer = await in_db(page.post, "/machines/", {"name": "build-03"}, headers=HTMX)
    secret = re.search(r"--token (\S+)", answer.text)
    assert secret
    async with open_socket("/ws/me/?lists=machines,enrolments", cookies(alice)) as browser:
        assert "Waiting for the machine" in await browser.receive()
        machine, _ = await in_db(redeem_enrolment, secret[1], name="build-03", platform="Linux")
        html = await browser.receive_with("build-03 is registered")
        assert '<ul id="machines"' in browser.everything
        assert "has-arrived" not in html
        await in_db(Machine.objects.filter(pk=machine.pk).update, last_seen_at=now())
        await in_db(change, machine, "connect")
        assert "has arrived, it is connected" in await browser.receive_with("has-arrived")
