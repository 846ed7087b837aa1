"""The admin site: everything is there, and what has rules is changed through the services."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.db.models import Model
from django.test import Client
from pytest_django import DjangoAssertNumQueries

from agents.models import Agent, AgentStatus
from chatroom.models import Event, Membership, Room, Task, TaskStatus, Token
from tests.factories import make_agent, make_held_task, make_task, token_of

MODELS = [model for app in ("chatroom", "agents", "machines") for model in apps.get_app_config(app).get_models()]


@pytest.fixture
def root(page: Client, alice: User) -> Client:
    """The owner of the server."""
    User.objects.filter(pk=alice.pk).update(is_staff=True, is_superuser=True)
    return page


def url_of(model: type[Model], name: str = "") -> str:
    return f"/admin/{model._meta.app_label}/{model._meta.model_name}/{name}"


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_registered_searchable_and_filterable(model: type[Model]) -> None:
    registered = admin.site.get_model_admin(model)
    assert registered.search_fields
    assert registered.list_filter


@pytest.mark.parametrize("model", MODELS)
def test_every_list_opens_and_is_searched(root: Client, room: Room, model: type[Model]) -> None:
    make_held_task(room)
    assert root.get(url_of(model)).status_code == 200
    assert root.get(url_of(model), {"q": "builder"}).status_code == 200


@pytest.mark.parametrize("model", [Task, Agent, Event])
def test_a_list_asks_a_fixed_number_of_queries(
    root: Client, room: Room, model: type[Model], django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    for _ in range(15):
        make_task(room, status=TaskStatus.QUEUED)
        Event.objects.create(room=room, subject="task", subject_id=1, trigger="x", actor="alice")
    with django_assert_max_num_queries(20):
        root.get(url_of(model))


@pytest.mark.parametrize("model", [Task, Agent, Event, Token, Membership])
def test_no_row_can_be_edited_added_or_deleted_by_hand(root: Client, room: Room, alice: User, model: type[Model]) -> None:
    make_held_task(room)
    token_of(alice)
    row = model._default_manager.all()[0]
    assert root.get(url_of(model, f"{row.pk}/change/")).status_code == 200
    assert root.post(url_of(model, f"{row.pk}/change/"), {"status": "completed"}).status_code == 403
    assert root.get(url_of(model, "add/")).status_code == 403
    assert root.post(url_of(model, f"{row.pk}/delete/"), {"post": "yes"}).status_code == 403


def test_no_page_of_a_row_has_a_field_for_its_status(root: Client, room: Room) -> None:
    task, agent, _ = make_held_task(room)
    for row in (task, agent):
        assert 'name="status"' not in root.get(url_of(type(row), f"{row.pk}/change/")).text


ACTIONS = [
    ("cancel_tasks", TaskStatus.PENDING, TaskStatus.CLOSED),
    ("force_complete_tasks", TaskStatus.PENDING, TaskStatus.COMPLETED),
    ("retry_tasks", TaskStatus.FAILED, TaskStatus.PENDING),
]


@pytest.mark.parametrize(("action", "before", "after"), ACTIONS)
def test_a_press_makes_exactly_one_event(root: Client, room: Room, action: str, before: str, after: str) -> None:
    task = make_task(room, status=before)
    root.post(url_of(Task), {"action": action, "_selected_action": [task.pk]})
    event = Event.objects.get(subject="task", subject_id=task.pk)
    assert (Task.objects.get(pk=task.pk).status, event.to_state, event.actor) == (after, after, "alice")


def test_a_press_on_many_stops_at_none(root: Client, room: Room) -> None:
    closed, pending = make_task(room, status=TaskStatus.CLOSED), make_task(room)
    answer = root.post(url_of(Task), {"action": "cancel_tasks", "_selected_action": [closed.pk, pending.pk]}, follow=True)
    assert "cancel_task is not possible from there" in answer.text
    assert Task.objects.get(pk=pending.pk).status == TaskStatus.CLOSED


def test_an_agent_is_stopped_through_the_service(root: Client, room: Room) -> None:
    agent = make_agent(room)
    root.post(url_of(Agent), {"action": "leave", "_selected_action": [agent.pk]})
    assert Agent.objects.get(pk=agent.pk).status == AgentStatus.OFFLINE
    assert Event.objects.filter(subject="agent", trigger="leave").count() == 1


def test_staff_who_may_only_look_have_no_actions(page: Client, room: Room, alice: User) -> None:
    User.objects.filter(pk=alice.pk).update(is_staff=True)
    alice.user_permissions.add(Permission.objects.get(codename="view_task"))
    task = make_task(room)
    assert page.get(url_of(Task)).status_code == 200
    page.post(url_of(Task), {"action": "cancel_tasks", "_selected_action": [task.pk]})
    assert Task.objects.get(pk=task.pk).status == TaskStatus.PENDING


def test_a_token_is_revoked(root: Client, alice: User) -> None:
    token_of(alice)
    root.post(url_of(Token), {"action": "revoke", "_selected_action": [Token.objects.get().pk]})
    assert Token.objects.get().revoked_at is not None


def test_the_hash_of_a_token_is_shown_to_nobody(root: Client, alice: User) -> None:
    token_of(alice)
    token = Token.objects.get()
    assert token.hash not in root.get(url_of(Token, f"{token.pk}/change/")).text


def test_the_site_is_for_staff(page: Client) -> None:
    assert page.get("/admin/").status_code == 302


def test_a_rooms_people_are_changed_with_an_event(root: Client, room: Room, bob: User) -> None:
    rows = list(Membership.objects.filter(room=room))
    form: dict[str, object] = {"name": "The Mill", "membership_set-TOTAL_FORMS": len(rows), "membership_set-INITIAL_FORMS": len(rows)}
    for place, row in enumerate(rows):
        role = "viewer" if row.user == bob else row.role
        fields = {"id": row.pk, "room": room.pk, "user": row.user_id, "role": role}
        form |= {f"membership_set-{place}-{name}": value for name, value in fields.items()}
    assert root.post(url_of(Room, f"{room.pk}/change/"), form).status_code == 302
    assert Membership.objects.get(room=room, user=bob).role == "viewer"
    event = Event.objects.filter(room=room, subject="room").latest("pk")
    assert (event.trigger, event.actor) == ("change", "alice")


def test_a_room_is_not_deleted_by_hand(root: Client, room: Room) -> None:
    assert "deletelink" not in root.get(url_of(Room, f"{room.pk}/change/")).content.decode()
    assert root.post(url_of(Room, f"{room.pk}/delete/"), {"post": "yes"}).status_code == 403
