"""A message becomes a task; a busy role's tasks queue up; the queue moves by itself."""

import pytest
from django.contrib.auth.models import User
from django.test import override_settings

from agents.services import complete_task, handoff
from chatroom.errors import Invalid, NotFound, TooLarge
from chatroom.models import Event, Message, Room, Task, TaskStatus
from chatroom.services.messages import add_backlog_item, send_message
from chatroom.services.tasks import promote_next
from chatroom.status import list_tasks
from tests.agents.playing import Program, everything, statuses, take, triggers
from tests.factories import make_room, make_task, principal_of

pytestmark = pytest.mark.django_db


def send(room: Room, author: User, text: str = "do it", **fields: str) -> Task:
    return send_message(room.pk, text=text, author=author, **fields).task


@pytest.mark.scenario(16)
def test_a_message_is_one_pending_task_of_the_entry_point(room: Room, alice: User) -> None:
    sent = send_message(room.pk, text="# Fix the *test*\nplease", author=alice)
    assert statuses(room) == [("builder", "pending")]
    assert (sent.task.title, sent.task.text, sent.task.chain, sent.task.origin) == (
        "Fix the *test",
        "# Fix the *test*\nplease",
        sent.message,
        "message",
    )
    assert triggers(sent.task) == ["create"]
    assert list(Event.objects.order_by("pk").values_list("subject", "trigger"))[-2:] == [("message", "post"), ("task", "create")]


def test_a_message_may_name_its_role(room: Room, alice: User) -> None:
    send(room, alice, to="reviewer")
    assert statuses(room) == [("reviewer", "pending")]


def test_a_message_to_a_role_that_is_not_there_is_refused(room: Room, alice: User) -> None:
    before = everything()
    with pytest.raises(NotFound, match="its roles are builder, reviewer") as refusal:
        send(room, alice, to="painter")
    assert (refusal.value.code, refusal.value.allowed) == ("no_such_role", ["builder", "reviewer"])
    assert everything() == before


def test_a_message_to_a_room_that_is_not_there_is_refused(alice: User) -> None:
    with pytest.raises(NotFound) as refusal:
        send_message(2**40, text="hello", author=alice)
    assert refusal.value.code == "no_such_room"


@pytest.mark.parametrize("text", ["", "  \n ", "a\0b", "a\ud800b"])
def test_a_text_that_cannot_be_stored_is_refused(room: Room, alice: User, text: str) -> None:
    before = everything()
    with pytest.raises(Invalid, match="expected"):
        send(room, alice, text)
    assert everything() == before


@override_settings(MAX_TEXT_BYTES=10)
def test_a_text_that_is_too_large_is_refused(room: Room, alice: User) -> None:
    send(room, alice, "x" * 10)
    with pytest.raises(TooLarge, match="12 bytes"):
        send(room, alice, "ä" * 6)


@pytest.mark.scenario(17)
def test_further_messages_queue_up_and_exactly_one_is_promoted(room: Room, alice: User) -> None:
    first, second, third = (send(room, alice, text) for text in ("one", "two", "three"))
    assert [status for _, status in statuses(room)] == ["pending", "queued", "queued"]
    positions = {task["id"]: task["position"] for task in list_tasks(room)}
    assert positions == {first.pk: None, second.pk: 1, third.pk: 2}

    complete_task(room.pk, take(room, alice), text="done", principal=principal_of(alice))

    assert [status for _, status in statuses(room)] == ["completed", "pending", "queued"]
    assert triggers(second) == ["create", "promote"]
    assert {task["id"]: task["position"] for task in list_tasks(room)}[third.pk] == 1


@pytest.mark.scenario(18)
@pytest.mark.parametrize("start", [False, True])
def test_a_message_to_a_role_that_holds_a_task_is_queued_and_not_delivered(room: Room, alice: User, start: bool) -> None:
    send(room, alice, "one")
    program = Program(room, alice).connect()
    claim = program.take(start=start)
    second = send(room, alice, "two")
    assert second.status == TaskStatus.QUEUED
    again = program.connect().look()
    assert again is not None
    assert (again.claim, Task.objects.get(pk=second.pk).status) == (claim, TaskStatus.QUEUED)


def test_the_roles_have_queues_of_their_own(room: Room, alice: User) -> None:
    for role in ("builder", "reviewer", "reviewer"):
        send(room, alice, to=role)
    assert statuses(room) == [("builder", "pending"), ("reviewer", "pending"), ("reviewer", "queued")]
    other = make_room(alice, name="Other")
    assert send(other, alice).status == TaskStatus.PENDING


def test_promotion_goes_by_priority_then_age(room: Room) -> None:
    low, old, new = (make_task(room, status=TaskStatus.QUEUED, priority=priority) for priority in (0, 5, 5))
    assert [promote_next(room.pk, role="builder")] == [old]
    assert promote_next(room.pk, role="builder") is None
    assert [Task.objects.get(pk=task.pk).status for task in (low, old, new)] == ["queued", "pending", "queued"]


def test_nothing_is_promoted_past_an_active_task(room: Room) -> None:
    for status in ("pending", "acknowledged", "in_progress"):
        make_task(room, status=status, role="builder")
        make_task(room, status=TaskStatus.QUEUED)
        before = everything()
        assert promote_next(room.pk, role="builder") is None
        assert everything() == before
        Task.objects.all().delete()


@pytest.mark.scenario(32)
def test_a_handoff_to_the_user_ends_the_chain_and_promotes_the_oldest_queued_task(room: Room, alice: User) -> None:
    first, second, third = (send(room, alice, text) for text in ("one", "two", "three"))
    handoff(room.pk, take(room, alice), next_role="user", text="done", principal=principal_of(alice))
    assert [Task.objects.get(pk=task.pk).status for task in (first, second, third)] == ["completed", "pending", "queued"]
    assert Message.objects.get(kind="result").to == "user"


@pytest.mark.scenario(32)
def test_a_handoff_to_a_busy_role_is_queued_there_and_frees_the_sender(room: Room, alice: User) -> None:
    send(room, alice, "review this first", to="reviewer")
    send(room, alice, "build")
    waiting = send(room, alice, "build more")
    done = handoff(room.pk, take(room, alice), next_role="reviewer", text="built", principal=principal_of(alice))
    assert done.next_task is not None
    assert done.next_task.status == TaskStatus.QUEUED
    assert Task.objects.get(pk=waiting.pk).status == TaskStatus.PENDING


def test_a_handoff_to_ones_own_role_waits_behind_what_is_queued(room: Room, alice: User) -> None:
    send(room, alice, "one")
    waiting = send(room, alice, "two")
    done = handoff(room.pk, take(room, alice), next_role="builder", text="again", principal=principal_of(alice))
    assert done.next_task is not None
    assert (done.next_task.status, Task.objects.get(pk=waiting.pk).status) == (TaskStatus.QUEUED, TaskStatus.PENDING)


def test_a_backlog_item_waits_until_it_is_moved(room: Room, alice: User) -> None:
    task = add_backlog_item(room.pk, text="one day", author=alice, priority=3)
    assert (task.status, task.assigned_role, task.origin, task.priority) == (TaskStatus.BACKLOG, "builder", "backlog", 3)
    assert send(room, alice).status == TaskStatus.PENDING


def test_a_priority_has_its_limits(room: Room, alice: User) -> None:
    with pytest.raises(Invalid, match="priority 1000001"):
        add_backlog_item(room.pk, text="one day", author=alice, priority=1_000_001)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("## Make the **checkout** faster\nplease", "Make the checkout faster"),
        ("\n- see [the ticket](https://example.org/7) and `cart.py`", "see the ticket and cart.py"),
        ("```\n__init__ fails\n```", "__init__ fails"),
        ("***", "…"),
        ("2**10 is wrong, *args are not", "2**10 is wrong, *args are not"),
        ("- mend **the `code`** and ~~not~~ `**kwargs`", "mend the code and not **kwargs"),
        pytest.param("[" * 250_000, "[" * 120, id="hostile"),
    ],
)
def test_a_title_is_what_its_first_line_says(room: Room, alice: User, text: str, title: str) -> None:
    assert send_message(room.pk, text=text, author=alice).task.title == title
