"""Remote agents on a room's page: where they live, what their processes do, the buttons, and what became of them."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db.models import Max
from django.test import Client
from django.utils.timezone import now

from agents.models import Agent, AgentKind, AgentStatus
from chatroom.db import in_db
from chatroom.models import Event, Room
from chatroom.services.messages import send_message
from chatroom.services.rooms import room_locked
from machines.models import Command, Desired, Machine, MachineStatus, Placement, Run, RunState
from machines.services.connection import change_status, machine_locked
from machines.services.desire import finish_commands, restart_agent, start_agent, stop_agent
from tests.factories import make_agent, make_machine, make_placement, make_run

from .conftest import open_socket, path_of

SignIn = Callable[[User], Client]
Cookies = Callable[[User], str]
HTMX = {"HX-Request": "true"}
S = AgentStatus


@pytest.fixture
def machine(alice: User) -> Machine:
    return make_machine(alice)


def place(machine: Machine, room: Room, status: str = S.READY, *, run: str | None = RunState.RUNNING, **fields: object) -> Placement:
    """The builder in this state, on the machine."""
    agent = make_agent(room, status=status)
    placement = make_placement(machine, agent, desired=Desired.RUNNING, generation=1, **fields)
    if run is not None:
        make_run(placement, state=run, pid=4711, joined=status in (S.READY, S.WORKING))
    return Placement.objects.select_related("current_run").get(pk=placement.pk)


def show(page: Client) -> str:
    answer = page.get("/rooms/demo/")
    assert answer.status_code == 200
    return answer.text


def row_of(html: str, role: str = "builder") -> str:
    return html[html.index(f'id="agent-{role}"') : html.index(f'id="lane-{role}"')]


def card_of(html: str) -> str:
    return html[html.index('id="attention"') : html.index('id="agents-head"')]


def labels(html: str) -> list[str]:
    """Of the buttons for its process."""
    return re.findall(r'action="/rooms/demo/agents/builder/run/(\w+)/"', html)


def test_a_remote_agent_says_where_it_lives_and_what_its_process_does(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room, S.WORKING, model="opus")
    row = row_of(show(page))
    assert re.search(r'demo opus · <a href="/machines/#machine-\d+" class="mono">laptop-7</a> · running, pid 4711', row)


def test_a_custom_agent_has_nothing_of_machines_but_its_configuration(page: Client, room: Room) -> None:
    row = row_of(show(page))
    assert labels(row) == []
    assert "agent-home" not in row
    assert "/rooms/demo/agents/builder/configuration/" in row


@pytest.mark.parametrize(
    ("status", "run", "expected"),
    [
        (S.OFFLINE, None, ["start"]),
        (S.READY, RunState.RUNNING, ["restart", "stop"]),
        (S.WORKING, RunState.RUNNING, ["abort", "restart", "stop"]),
        (S.RESTARTING, RunState.VALIDATING, ["stop"]),
    ],
)
def test_only_buttons_that_make_sense_are_there(
    page: Client, machine: Machine, room: Room, status: str, run: str | None, expected: list[str]
) -> None:
    place(machine, room, status, run=run)
    assert labels(row_of(show(page))) == expected


@pytest.mark.parametrize(("status", "expected"), [(S.DEAD, ["restart", "stop"]), (S.DEAD_FAILED_REVIVE, ["restart"])])
def test_the_dead_have_their_buttons_on_top(page: Client, machine: Machine, room: Room, status: str, expected: list[str]) -> None:
    place(machine, room, status, run=RunState.FAILED)
    html = show(page)
    assert labels(card_of(html)) == expected
    assert labels(row_of(html)) == []


def test_a_stop_that_is_not_over_yet_can_be_taken_back(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room)
    stop_agent(room.pk, role="builder", actor="bob")
    assert labels(row_of(show(page))) == ["start"]


def test_an_agent_that_restarts_shows_the_last_lines_of_what_ended_and_how_often_it_did(page: Client, machine: Machine, room: Room) -> None:
    placement = place(machine, room, S.RESTARTING, run=None)
    make_run(placement, state=RunState.FAILED, verdict="faulty", ended_at=now() - timedelta(hours=25))
    make_run(placement, state=RunState.FAILED, verdict="faulty", ended_at=now() - timedelta(hours=23))
    make_run(placement, state=RunState.FAILED, verdict="transient", last_lines=["one", "two", "three", "out of <memory>", "goodbye"])
    row = row_of(show(page))
    assert re.search(r'<pre class="last-lines output"[^>]*>two\nthree\nout of &lt;memory&gt;\ngoodbye\n</pre>', row)
    assert row.index("last-lines output") < row.index("agent-more"), "it needs no opening"
    assert "2 in 24 h" in row
    make_run(placement, state=RunState.PREPARING)
    assert "last-lines output" not in row_of(show(page))


def test_work_that_waits_for_a_stopped_agent_has_the_button_that_helps(
    page: Client, sign_in: SignIn, machine: Machine, room: Room, alice: User, vera: User
) -> None:
    place(machine, room, S.OFFLINE, run=None)
    stop_agent(room.pk, role="builder", actor="bob")
    send_message(room.pk, text="do it", author=alice)

    def card(html: str) -> str:
        return html.partition('<div id="attention-notice-')[2].partition("</section>")[0]

    assert "no process · stopped by bob</p>" in row_of(show(page)), "though it was offline already"
    assert "it was stopped by bob." in card(show(page))
    assert labels(card(show(page))) == ["start"]
    assert labels(card(show(sign_in(vera)))) == []
    page.post("/rooms/demo/agents/builder/run/start/")
    assert labels(card(show(page))) == [], "it comes"


@pytest.mark.scenario(76)
def test_a_viewer_sees_everything_but_the_buttons(sign_in: SignIn, machine: Machine, room: Room, vera: User) -> None:
    place(machine, room, S.WORKING)
    html = show(sign_in(vera))
    row = row_of(html)
    assert "laptop-7</a> · running, pid 4711" in row
    assert "/agents/builder/log/" in row
    assert labels(html) == []
    assert "/configuration/" not in html


@pytest.mark.scenario(76)
@pytest.mark.parametrize("act", ["start", "stop", "restart", "abort"])
def test_only_members_press_buttons(sign_in: SignIn, machine: Machine, room: Room, vera: User, charlie: User, act: str) -> None:
    place(machine, room, S.WORKING)
    path = f"/rooms/demo/agents/builder/run/{act}/"
    assert sign_in(vera).post(path).status_code == 403
    assert sign_in(vera).post(path, headers=HTMX).status_code == 403
    assert sign_in(charlie).post(path).status_code == 404
    assert sign_in(vera).get(path).status_code == 405
    assert not Command.objects.exists()


@pytest.mark.parametrize("act", ["start", "stop", "restart", "abort"])
def test_a_members_press_becomes_a_command(sign_in: SignIn, machine: Machine, room: Room, bob: User, act: str) -> None:
    place(machine, room, S.WORKING)
    answer = sign_in(bob).post(f"/rooms/demo/agents/builder/run/{act}/")
    assert answer["Location"] == "/rooms/demo/#agent-builder"
    command = Command.objects.get()
    assert (command.act.removesuffix("_agent").removesuffix("_run"), command.actor) == (act, "bob")


def test_a_press_that_makes_no_sense_is_refused_in_words(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room, S.OFFLINE, run=None)
    answer = page.post("/rooms/demo/agents/builder/run/abort/", headers=HTMX)
    assert (answer.status_code, "builder has no run to abort" in answer.text) == (409, True)
    answer = page.post("/rooms/demo/agents/builder/run/explode/", headers=HTMX)
    assert (answer.status_code, "expected one of start, stop, restart, abort" in answer.text) == (404, True)
    answer = page.post("/rooms/demo/agents/reviewer/run/start/", headers=HTMX)
    assert (answer.status_code, "is a custom agent" in answer.text) == (403, True)


def line_of(html: str) -> tuple[str, str]:
    """The state of the command that is shown, and its words."""
    found = re.search(r'data-command-state="(\w+)"[^>]*>(.*?)</p>', html, re.DOTALL)
    assert found, html
    return found[1], re.sub(r"\s+", " ", re.sub("<[^>]+>", "", found[2])).strip()


def test_the_outcome_of_a_press_stands_in_the_row_after_a_reload_too(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room)
    page.post("/rooms/demo/agents/builder/run/restart/", headers=HTMX)
    state, words = line_of(row_of(show(page)))
    assert (state, "Restart by alice" in words, ": asked" in words) == ("pending", True, True)
    agent = Agent.objects.get(room=room, role="builder")
    finish_commands(agent, ["restart_agent"], "fail", outcome="harness codex: program not found")
    state, words = line_of(row_of(show(page)))
    assert state == "failed"
    assert words.endswith("failed · harness codex: program not found")


def test_a_press_that_went_well_takes_one_word(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room)
    restart_agent(room.pk, role="builder", actor="bob")
    finish_commands(Agent.objects.get(room=room, role="builder"), ["restart_agent"], "complete", outcome="builder is running")
    state, words = line_of(row_of(show(page)))
    assert state == "completed"
    assert re.fullmatch(r"Restart by bob: builder is running, done \d\d:\d\d", words)


def test_a_press_for_an_absent_machine_says_that_it_waits(page: Client, room: Room, alice: User) -> None:
    place(make_machine(alice, status=MachineStatus.DISCONNECTED), room)
    stop_agent(room.pk, role="builder", actor="alice")
    assert "waits until laptop-7 is back" in line_of(row_of(show(page)))[1]


def test_what_the_system_started_by_itself_is_nobodys_press(page: Client, machine: Machine, room: Room) -> None:
    place(machine, room)
    Command.objects.create(machine=machine, agent=Agent.objects.get(room=room, role="builder"), act="start_agent", actor="chatroom")
    assert "Start by chatroom" in line_of(row_of(show(page)))[1]
    Command.objects.all().delete()
    Command.objects.create(
        machine=machine, agent=Agent.objects.get(room=room, role="builder"), act="start_agent", actor="chatroom", state="completed"
    )
    assert "data-command-state" not in row_of(show(page))


def test_the_wait_before_the_next_attempt_is_told(page: Client, machine: Machine, room: Room) -> None:
    at = now() + timedelta(seconds=4)
    place(machine, room, S.RESTARTING, run=RunState.FAILED, restart_attempt=2, restart_attempts=3, restart_at=at)
    row = row_of(show(page))
    assert f'<span class="agent-when">attempt 2 of 3 <time datetime="{at.isoformat()}" data-until="in">' in row


@pytest.mark.scenario(52)
def test_the_unrecoverable_show_the_last_lines_of_their_output(page: Client, machine: Machine, room: Room) -> None:
    placement = place(machine, room, S.DEAD_FAILED_REVIVE, run=RunState.FAILED)
    Run.objects.update(last_lines=["starting codex exec", "<script>alert(1)</script> codex: command not found"], exit_code=127)
    Agent.objects.filter(pk=placement.agent_id).update(error_message="3 of 3 attempts failed")
    card = card_of(show(page))
    assert "3 of 3 attempts failed" in card
    assert "starting codex exec\n&lt;script&gt;alert(1)&lt;/script&gt; codex: command not found" in card
    assert "no process · exit code 127" in card


@pytest.mark.scenario(37)
def test_agents_of_an_absent_machine_are_unconfirmed(page: Client, room: Room, alice: User) -> None:
    machine = make_machine(alice, status=MachineStatus.DISCONNECTED)
    place(machine, room, S.WORKING)
    html = show(page)
    row = row_of(html)
    assert re.search(r"unconfirmed since <time [^>]+>\d\d:\d\d</time>: laptop-7 is away", row)
    assert row.count("unconfirmed since") == 1
    card = card_of(html)
    assert f'id="attention-machine-{machine.pk}"' in card
    assert "what builder does there is unconfirmed" in card


def test_an_absent_machine_with_nobody_on_it_needs_no_attention(page: Client, room: Room, alice: User) -> None:
    place(make_machine(alice, status=MachineStatus.DISCONNECTED), room, S.OFFLINE, run=None)
    html = show(page)
    assert re.search(r'<section id="attention"[^>]* hidden>', html)
    assert "unconfirmed since" not in row_of(html)


def test_all_agents_are_counted(page: Client, room: Room) -> None:
    """Also several of one status."""
    for role in ("builder", "reviewer"):
        make_agent(room, role)
    assert "2 of 2 reachable" in show(page)


# --- the form


def fields(**changed: str) -> dict[str, str]:
    given = {"kind": "remote", "machine": "laptop-7", "harness": "demo", "model": "", "directory": "/home/alice/src"}
    return {name: value for name, value in {**given, **changed}.items() if value is not None}


CONFIGURATION = "/rooms/demo/agents/builder/configuration/"


def test_the_form_offers_what_the_machine_offers(page: Client, machine: Machine, room: Room) -> None:
    codex = {"name": "codex", "version": "0.9", "models": ["gpt-5", "gpt-5-mini"], "ok": True, "error": ""}
    gone = {"name": "gemini", "version": "", "models": [], "ok": False, "error": "program not found"}
    Machine.objects.update(harnesses=[codex, gone])
    html = page.get(CONFIGURATION, {"kind": "remote", "machine": "laptop-7", "harness": "codex"}, headers=HTMX).text
    assert '<option value="laptop-7" selected>' in html
    assert '<option value="codex" selected>codex · 0.9</option>' in html
    assert '<option value="gemini" disabled>gemini · program not found</option>' in html
    assert '<option value="gpt-5-mini">' in html
    assert '<option value="/home/alice/src"></option>' in html
    assert "<!doctype html>" in page.get(CONFIGURATION).text


def test_a_custom_agent_becomes_remote_and_back(page: Client, machine: Machine, room: Room) -> None:
    answer = page.post(CONFIGURATION, fields(), headers=HTMX)
    assert "Saved: builder lives on laptop-7." in answer.text
    placement = Placement.objects.get()
    assert (placement.harness, placement.directory, placement.agent.kind) == ("demo", "/home/alice/src", AgentKind.REMOTE)
    page.post(CONFIGURATION, fields(kind="custom"))
    assert not Placement.objects.exists()


@pytest.mark.scenario(49)
@pytest.mark.parametrize(
    ("changed", "status", "says"),
    [
        ({"directory": "/etc"}, 400, "laptop-7 allows /home/alice/src"),
        ({"directory": "/home/alice/src/../.ssh"}, 400, "laptop-7 allows /home/alice/src"),
        ({"harness": "rm -rf"}, 400, "laptop-7 offers demo"),
        ({"harness": ""}, 400, "has no harness yet"),
        ({"machine": "elsewhere"}, 404, "there is no machine"),
        ({"machine": ""}, 400, "has no machine yet"),
    ],
)
def test_what_can_not_be_is_said_where_the_button_is(
    page: Client, machine: Machine, room: Room, changed: dict[str, str], status: int, says: str
) -> None:
    answer = page.post(CONFIGURATION, fields(**changed), headers=HTMX)
    assert (answer.status_code, says in answer.text) == (status, True), answer.text
    assert answer.text.startswith('<span class="error" role="alert">')
    assert not Placement.objects.exists()


def test_an_agent_that_runs_is_stopped_first_and_the_page_says_so(page: Client, machine: Machine, room: Room, alice: User) -> None:
    place(machine, room)
    make_machine(alice, "build-02")
    assert "It runs on laptop-7. Another machine or kind: it is stopped first" in page.get(CONFIGURATION).text
    answer = page.post(CONFIGURATION, fields(machine="build-02"), headers=HTMX)
    assert (answer.status_code, "builder runs on laptop-7: it is stopped first, then changed." in answer.text) == (200, True)
    row = page.get("/rooms/demo/").text
    assert "stopped first, then it moves to build-02" in row
    assert Command.objects.get().act == "stop_agent"
    page.post("/rooms/demo/agents/builder/run/start/")
    assert "stopped first" not in page.get("/rooms/demo/").text


def test_only_owners_configure(sign_in: SignIn, machine: Machine, room: Room, bob: User, vera: User, charlie: User) -> None:
    for user, status in ((bob, 403), (vera, 403), (charlie, 404)):
        client = sign_in(user)
        assert client.get(CONFIGURATION).status_code == status
        assert client.post(CONFIGURATION, fields()).status_code == status
    assert not Placement.objects.exists()


# --- live


def last_event(room: Room) -> int:
    return Event.objects.filter(room=room).aggregate(last=Max("pk"))["last"] or 0


def fail_start(room: Room) -> None:
    with room_locked(room.pk):
        finish_commands(Agent.objects.get(room=room, role="builder"), ["start_agent"], "fail", outcome="no such directory")


def disconnect(machine: Machine) -> None:
    with machine_locked(machine.pk) as locked:
        change_status(locked, "disconnect", reason="no sign of life for 10 s")


@pytest.mark.usefixtures("live")
@pytest.mark.scenario(71)
async def test_a_press_is_seen_on_every_page_with_its_outcome(
    machine: Machine, room: Room, alice: User, vera: User, cookies: Cookies
) -> None:
    await in_db(place, machine, room, S.OFFLINE, run=None)
    last = await in_db(last_event, room)
    async with open_socket(path_of(room), cookies(alice), last=last) as one, open_socket(path_of(room), cookies(vera), last=last) as other:
        await in_db(start_agent, room.pk, role="builder", actor="alice")
        for browser in (one, other):
            html = await browser.receive_with('data-command-state="pending"')
            assert 'data-status="restarting"' in html
        await in_db(fail_start, room)
        assert labels(await one.receive_with("no such directory")) == ["stop"]
        assert labels(await other.receive_with("no such directory")) == []


@pytest.mark.usefixtures("live")
@pytest.mark.scenario(37)
async def test_a_machine_that_goes_away_is_told_on_its_agents(machine: Machine, room: Room, bob: User, cookies: Cookies) -> None:
    await in_db(place, machine, room, S.WORKING)
    async with open_socket(path_of(room), cookies(bob), last=await in_db(last_event, room)) as browser:
        await browser.receive()
        await in_db(disconnect, machine)
        html = await browser.receive_with("laptop-7 is away")
        assert f'id="attention-machine-{machine.pk}"' in html
