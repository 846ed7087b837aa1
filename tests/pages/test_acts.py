"""What people do on a page: with JavaScript and without, allowed and not."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents.models import Agent, AgentStatus
from chatroom.board import ACTS, CANCEL, CLOSE, Act, acts_of
from chatroom.events import possible_moves
from chatroom.models import Event, MemberRole, Membership, Message, Origin, Room, Task, TaskStatus
from tests.factories import make_agent, make_held_task, make_task

SignIn = Callable[[User], Client]
S = TaskStatus
HTMX = {"HX-Request": "true"}


def test_home_lists_only_ones_own_rooms(sign_in: SignIn, room: Room, charlie: User, bob: User) -> None:
    assert "/rooms/demo/" in sign_in(bob).get("/").text
    assert "/rooms/demo/" not in sign_in(charlie).get("/").text


@pytest.mark.parametrize(("team", "roles"), [("solo", ["builder"]), ("pair", ["builder", "reviewer"]), ("custom", ["scout", "writer"])])
def test_a_room_is_made_with_its_team(page: Client, team: str, roles: list[str]) -> None:
    answer = page.post("/rooms/", {"name": "Search", "team": team, "roles": "scout, writer"})
    assert answer["Location"] == "/rooms/search/"
    assert Room.objects.get().team == roles
    assert Membership.objects.get().role == MemberRole.OWNER


def test_a_team_that_cannot_be_is_said_and_what_was_typed_kept(page: Client) -> None:
    answer = page.post("/rooms/", {"name": "Search", "team": "custom", "roles": "Scout Master"})
    assert answer.status_code == 400
    assert "expected a lower-case word" in answer.text
    assert 'value="Scout Master"' in answer.text
    assert not Room.objects.exists()


def test_a_message_becomes_work(page: Client, room: Room) -> None:
    answer = page.post("/rooms/demo/messages/", {"text": "Fix it", "to": "reviewer"})
    assert answer["Location"] == f"/rooms/demo/#message-{Message.objects.get().pk}"
    assert Task.objects.get().assigned_role == "reviewer"


def test_with_htmx_the_outcome_is_the_answer(page: Client, room: Room) -> None:
    answer = page.post("/rooms/demo/messages/", {"text": "Fix it"}, headers=HTMX)
    assert (answer.status_code, answer.text.strip()) == (200, f'<span class="done">Sent: task {Task.objects.get().pk} is pending.</span>')


@pytest.mark.parametrize("text", ["", "  \n ", "a\0b", "\ud800"])
def test_a_text_that_cannot_be_stored_is_refused(page: Client, room: Room, text: str) -> None:
    answer = page.post("/rooms/demo/messages/", {"text": text.encode("utf-8", "surrogatepass")}, headers=HTMX)
    assert answer.status_code in {200, 400}
    assert "\0" not in "".join(Message.objects.values_list("text", flat=True))


def test_without_javascript_a_refusal_stands_on_top_of_the_page(page: Client, room: Room) -> None:
    answer = page.post("/rooms/demo/messages/", {"text": " "}, follow=True)
    assert answer.redirect_chain == [("/rooms/demo/", 302)]
    assert "the text is empty" in answer.text


def test_the_backlog_takes_an_item(page: Client, room: Room) -> None:
    page.post("/rooms/demo/backlog/", {"text": "Later"})
    assert Task.objects.get().status == S.BACKLOG


ACT_CASES = [
    ("move_to_queue", S.BACKLOG, S.PENDING),
    ("cancel", S.PENDING, S.CLOSED),
    ("force_complete", S.PENDING, S.COMPLETED),
    ("retry", S.FAILED, S.PENDING),
    ("approve", S.PENDING_USER_REVIEW, S.COMPLETED),
    ("send_back", S.PENDING_USER_REVIEW, S.PENDING),
    ("reopen", S.CLOSED, S.PENDING_USER_REVIEW),
]


@pytest.mark.scenario(33)
@pytest.mark.parametrize(("act", "before", "after"), ACT_CASES)
def test_a_press_moves_a_task_and_says_so(page: Client, room: Room, act: str, before: str, after: str) -> None:
    task = make_task(room, status=before, origin=Origin.BACKLOG)
    answer = page.post(f"/rooms/demo/tasks/{task.pk}/{act}/", {"reason": "the test is missing"}, headers=HTMX)
    assert (answer.status_code, Task.objects.get(pk=task.pk).status) == (200, after)
    assert Event.objects.filter(subject="task", subject_id=task.pk, actor="alice").count() == 1


@pytest.mark.scenario(34)
def test_a_reset_takes_the_task_from_its_holder(page: Client, room: Room) -> None:
    task, agent, claim = make_held_task(room)
    page.post(f"/rooms/demo/tasks/{task.pk}/reset/", headers=HTMX)
    claim.refresh_from_db()
    assert Task.objects.get(pk=task.pk).status == S.PENDING
    assert (claim.outcome, Agent.objects.get(pk=agent.pk).status) == ("reset", AgentStatus.READY)


def test_a_move_that_is_not_possible_is_refused_where_the_button_was(page: Client, room: Room) -> None:
    task = make_task(room, status=S.COMPLETED)
    answer = page.post(f"/rooms/demo/tasks/{task.pk}/retry/", headers=HTMX)
    assert answer.status_code == 409
    assert f"task {task.pk} is completed: retry is not possible from there" in answer.text
    assert not Event.objects.filter(subject="task").exists()


@pytest.mark.parametrize("act", ["cancel", "send_back"])
@pytest.mark.scenario(33)
def test_closing_or_sending_back_needs_a_reason(page: Client, room: Room, act: str) -> None:
    task = make_task(room, status=S.PENDING_USER_REVIEW, origin=Origin.BACKLOG)
    answer = page.post(f"/rooms/demo/tasks/{task.pk}/{act}/", {"reason": "  "}, headers=HTMX)
    assert answer.status_code == 400
    assert "needs a reason" in answer.text
    assert Task.objects.get(pk=task.pk).status == S.PENDING_USER_REVIEW


@pytest.mark.parametrize("act", ["delete", "promote", "claim_task"])
def test_an_act_that_is_not_for_people_is_unknown(page: Client, room: Room, act: str) -> None:
    task = make_task(room)
    assert page.post(f"/rooms/demo/tasks/{task.pk}/{act}/", headers=HTMX).status_code == 404


def test_a_task_of_another_room_is_not_found(page: Client, room: Room, alice: User) -> None:
    page.post("/rooms/", {"name": "Other", "team": "solo"})
    task = make_task(room)
    assert page.post(f"/rooms/other/tasks/{task.pk}/cancel/", headers=HTMX).status_code == 404
    assert Task.objects.get(pk=task.pk).status == S.PENDING


@pytest.mark.parametrize("origin", Origin.values)
@pytest.mark.parametrize("status", S.values)
def test_every_button_offered_is_a_possible_move(room: Room, status: str, origin: str) -> None:
    task = make_task(room, status=status, origin=origin)
    possible = set(possible_moves(task))
    assert {{"cancel": "cancel_task"}.get(act.name, act.name) for act in acts_of(task)} <= possible


EVERY_ACT = {act.name: act for acts in [*ACTS.values(), [CANCEL, CLOSE]] for act in acts}


@pytest.mark.parametrize("act", EVERY_ACT.values(), ids=EVERY_ACT)
def test_what_ends_somebodys_work_asks_first(act: Act) -> None:
    assert act.look != "red" or act.asks


def test_a_custom_agent_is_stopped_and_dismissed(page: Client, room: Room) -> None:
    make_agent(room, status=AgentStatus.READY)
    make_agent(room, "reviewer", status=AgentStatus.DEAD)
    assert page.post("/rooms/demo/agents/builder/leave/", headers=HTMX).status_code == 200
    assert page.post("/rooms/demo/agents/reviewer/dismiss/", headers=HTMX).status_code == 200
    assert set(Agent.objects.values_list("status", flat=True)) == {AgentStatus.OFFLINE}


def test_dismissing_a_living_agent_is_refused(page: Client, room: Room) -> None:
    make_agent(room, status=AgentStatus.READY)
    assert page.post("/rooms/demo/agents/builder/dismiss/", headers=HTMX).status_code == 409
    assert page.post("/rooms/demo/agents/builder/explode/", headers=HTMX).status_code == 404
    assert page.post("/rooms/demo/agents/ghost/leave/", headers=HTMX).status_code == 404


def test_an_owner_adds_a_person(page: Client, room: Room, charlie: User) -> None:
    answer = page.post("/rooms/demo/members/", {"username": "charlie", "role": "viewer"}, headers=HTMX)
    assert answer.status_code == 200
    assert Membership.objects.get(user=charlie).role == MemberRole.VIEWER


def test_nobody_unknown_can_be_added(page: Client, room: Room) -> None:
    answer = page.post("/rooms/demo/members/", {"username": "nobody", "role": "member"}, headers=HTMX)
    assert answer.status_code == 404
    assert "nobody called" in answer.text


def test_a_member_adds_nobody(sign_in: SignIn, room: Room, bob: User, charlie: User) -> None:
    assert sign_in(bob).post("/rooms/demo/members/", {"username": "charlie", "role": "member"}).status_code == 403
    assert not Membership.objects.filter(user=charlie).exists()


PRESSES = [
    ("messages/", {"text": "x"}),
    ("backlog/", {"text": "x"}),
    ("tasks/{task}/cancel/", {}),
    ("agents/builder/leave/", {}),
    ("members/", {"username": "charlie", "role": "member"}),
]


@pytest.mark.scenario(76)
@pytest.mark.parametrize(("path", "data"), PRESSES)
def test_a_viewer_cannot_act(sign_in: SignIn, room: Room, vera: User, path: str, data: dict[str, str]) -> None:
    task, events = make_task(room), Event.objects.count()
    url = f"/rooms/demo/{path.format(task=task.pk)}"
    assert sign_in(vera).post(url, data).status_code == 403
    refused = sign_in(vera).post(url, data, headers=HTMX)
    assert refused.status_code == 403
    assert "you can watch, not act" in refused.text
    assert Event.objects.count() == events


@pytest.mark.scenario(77)
@pytest.mark.parametrize(("path", "data"), PRESSES)
def test_to_a_stranger_the_room_does_not_exist(sign_in: SignIn, room: Room, charlie: User, path: str, data: dict[str, str]) -> None:
    task = make_task(room)
    assert sign_in(charlie).post(f"/rooms/demo/{path.format(task=task.pk)}", data).status_code == 404
    assert Task.objects.get().status == S.PENDING
    assert not Message.objects.filter(text="x").exists()


@pytest.mark.scenario(77)
@pytest.mark.parametrize(
    "path", ["", "messages/1/", "messages/before/9/", "tasks/1/history/", "agents/builder/history/", "agents/builder/prompt/"]
)
def test_a_stranger_reads_nothing(sign_in: SignIn, room: Room, charlie: User, path: str) -> None:
    assert sign_in(charlie).get(f"/rooms/demo/{path}").status_code == 404


@pytest.mark.parametrize(("path", "_"), PRESSES)
def test_a_press_is_a_post(page: Client, room: Room, path: str, _: object) -> None:
    assert page.get(f"/rooms/demo/{path.format(task=1)}").status_code == 405


def test_a_press_without_the_forms_token_is_refused_in_words(room: Room, alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice, backend="django.contrib.auth.backends.ModelBackend")
    answer = client.post("/rooms/demo/messages/", {"text": "x"})
    assert answer.status_code == 403
    assert "This form is too old" in answer.text
    assert not Message.objects.exists()
