"""What an agent prints, on its own page and live: text, to the members of its room."""

import json
from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from chatroom.db import in_db
from chatroom.models import Room
from machines import tailing
from machines.models import Desired, Machine, Placement, Run, RunLog, RunState
from machines.services.telling import keep_log
from tests.factories import make_agent, make_machine, make_placement, make_run

from .conftest import closing_code, open_socket

SignIn = Callable[[User], Client]
Cookies = Callable[[User], str]
LOG = "/ws/rooms/demo/agents/builder/log/"


@pytest.fixture
def machine(alice: User) -> Machine:
    return make_machine(alice)


def place(machine: Machine, room: Room) -> Placement:
    """The builder, ready, with a process on the machine."""
    placement = make_placement(machine, make_agent(room), desired=Desired.RUNNING, generation=1)
    make_run(placement, pid=4711)
    return Placement.objects.select_related("current_run").get(pk=placement.pk)


def print_text(run: Run, text: str, *, offset: int = 0) -> None:
    keep_log(run.machine_id, [{"run": run.pk, "offset": offset, "end": offset + len(text), "text": text}])


def test_the_log_is_text(sign_in: SignIn, machine: Machine, room: Room, vera: User, charlie: User) -> None:
    run = place(machine, room).current_run
    assert run is not None
    print_text(run, "\x1b[31mred\x1b[0m <script>alert(1)</script>\n")
    html = sign_in(vera).get("/rooms/demo/agents/builder/log/").text
    assert "<pre>red &lt;script&gt;alert(1)&lt;/script&gt;\n</pre>" in html
    assert f"run {run.pk} · running, pid 4711 on laptop-7" in html
    assert sign_in(charlie).get("/rooms/demo/agents/builder/log/").status_code == 404


@pytest.mark.django_db(transaction=True)
def test_the_pieces_of_one_message_are_stored_in_one_transaction(machine: Machine, room: Room) -> None:
    run = place(machine, room).current_run
    assert run is not None
    pieces = [{"run": run.pk, "offset": offset, "end": offset + 4, "text": f"abc{offset}"} for offset in (0, 4, 8)]
    with CaptureQueriesContext(connection) as queries:
        keep_log(machine.pk, pieces)
    assert RunLog.objects.get().text == "abc0abc4abc8"
    assert [query["sql"] for query in queries.captured_queries].count("COMMIT") == 1


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tailing, "SHORTEST_GAP", 0.01)


@pytest.mark.usefixtures("live", "hasty")
async def test_an_open_log_is_followed_from_run_to_run(machine: Machine, room: Room, vera: User, cookies: Cookies) -> None:
    placement = await in_db(place, machine, room)
    first = placement.current_run
    assert first is not None
    await in_db(print_text, first, "one\n")
    async with open_socket(LOG, cookies(vera), last=None) as browser:
        assert json.loads(await browser.receive()) == {
            "run": first.pk,
            "title": f"run {first.pk} · running, pid 4711 on laptop-7",
            "text": "one\n",
            "append": False,
        }
        await in_db(print_text, first, "two\n", offset=4)
        news = json.loads(await browser.receive())
        assert (news["text"], news["append"]) == ("two\n", True)
        await in_db(Run.objects.filter(pk=first.pk).update, state=RunState.FAILED, ended_at=now(), error_message="exit 3")
        second = await in_db(make_run, placement, pid=4712)
        await in_db(print_text, second, "anew")
        while (news := json.loads(await browser.receive()))["run"] == first.pk:
            assert news["title"].endswith("failed on laptop-7: exit 3")
        shown, is_first = "", True
        while True:  # it may be seen before it has said anything
            assert (news["run"], news["append"]) == (second.pk, not is_first)
            shown, is_first = shown + news["text"], False
            if shown == "anew":
                break
            news = json.loads(await browser.receive())


def test_a_log_that_lost_its_beginning_is_sent_whole(machine: Machine, room: Room) -> None:
    run = place(machine, room).current_run
    assert run is not None
    before = tailing.Tail(run, "a" * RunLog.KEPT)
    news = tailing.describe_news(tailing.Tail(run, "a" * (RunLog.KEPT - 1) + "b"), before)
    assert (len(news["text"]), news["append"]) == (RunLog.KEPT, False)


@pytest.mark.usefixtures("live", "hasty")
async def test_an_open_log_ends_with_the_membership(machine: Machine, room: Room, vera: User, cookies: Cookies) -> None:
    run = (await in_db(place, machine, room)).current_run
    assert run is not None
    async with open_socket(LOG, cookies(vera), last=None) as browser:
        await browser.receive()
        await in_db(room.members.remove, vera)
        await in_db(print_text, run, "a secret")
        assert await closing_code(browser.socket) == 4404
    assert "a secret" not in browser.everything


@pytest.mark.usefixtures("live", "hasty")
async def test_an_open_log_answers_whether_it_is_still_there(machine: Machine, room: Room, vera: User, cookies: Cookies) -> None:
    await in_db(place, machine, room)
    async with open_socket(LOG, cookies(vera), last=None) as browser:
        await browser.receive()
        await browser.socket.send_to('{"ping": true}')
        assert json.loads(await browser.receive()) == {"pong": True}
