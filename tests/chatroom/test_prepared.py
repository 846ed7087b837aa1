"""Statements built once read and write what the ORM's own do."""

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection, models, transaction
from django.db.models import Model
from django.db.transaction import TransactionManagementError
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from agents.models import Agent, Claim
from chatroom.events import record_event
from chatroom.models import Event, Message, Room, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.rows import as_parameter, converter, insert, insert_in_time, new, save_changes
from chatroom.statements import change, fetch
from chatroom.unit import one_unit
from tests.factories import make_task

pytestmark = pytest.mark.django_db
BY_ROLE = Prepared[Agent](lambda room, role: Agent.objects.filter(room=room, role=role).select_related("room"))
PENDING = Prepared[Task](lambda room: Task.objects.filter(room=room, status=TaskStatus.PENDING).order_by("id"))


def found(room: Room, role: str = "builder") -> Agent:
    agent = BY_ROLE.first(room=room.pk, role=role)
    assert agent is not None
    return agent


def test_it_reads_the_row_and_its_relations_as_the_orm_does(room: Room) -> None:
    agent, same = found(room), Agent.objects.get(room=room, role="builder")
    assert {**agent.__dict__, "_state": 0, "_read": 0} == {**same.__dict__, "_state": 0, "_read": 0}
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert agent.room == room
    assert not queries


def test_each_call_brings_its_own_values(room: Room) -> None:
    assert [found(room, role).role for role in ("builder", "reviewer", "builder")] == ["builder", "reviewer", "builder"]
    assert BY_ROLE.first(room=room.pk, role="nobody") is None
    assert not PENDING.exists(room=room.pk)
    task = make_task(room)
    assert PENDING.exists(room=room.pk)
    assert list(PENDING.rows(room=room.pk)) == [task]


def test_times_are_compared_as_times(room: Room) -> None:
    task = make_task(room)
    since = Prepared[Task](lambda oldest: Task.objects.filter(status_since__gt=oldest).values_list("room_id", "pk"))
    assert list(since.plain_rows(oldest=task.status_since - timedelta(microseconds=1))) == [(room.pk, task.pk)]
    assert list(since.plain_rows(oldest=task.status_since)) == []


def test_only_changed_columns_are_written(room: Room) -> None:
    agent = found(room)
    Agent.objects.filter(pk=agent.pk).update(connection="by another hand")
    agent.error_message = "changed here"
    with CaptureQueriesContext(connection) as queries:
        save_changes(agent)
        save_changes(agent)
    assert len(queries) == 1
    stored = Agent.objects.get(pk=agent.pk)
    assert (stored.connection, stored.error_message) == ("by another hand", "changed here")


def test_a_value_that_changes_back_after_the_orms_own_save_is_written(room: Room) -> None:
    agent = found(room)
    agent.connection = "there"
    agent.save()
    agent.connection = ""
    save_changes(agent)
    assert Agent.objects.get(pk=agent.pk).connection == ""


def test_a_row_that_is_gone_is_an_error(room: Room) -> None:
    agent = found(room)
    Agent.objects.filter(pk=agent.pk).delete()
    agent.connection = "there"
    with pytest.raises(DatabaseError, match="it is gone"):
        save_changes(agent)


def test_new_rows_get_their_keys_and_defaults(room: Room) -> None:
    first = insert(Message(room=room, sender="alice", text="one"))
    insert_in_time(Message(room=room, sender="bob", text="two"))
    assert list(Message.objects.values_list("sender", "text", "kind")) == [("alice", "one", "chat"), ("bob", "two", "chat")]
    assert first == Message.objects.get(text="one")
    assert first.created_at == Message.objects.get(text="one").created_at


def test_what_a_model_prepares_in_save_is_prepared_here_too(room: Room, alice: User) -> None:
    message = insert(Message(room=room, sender="alice", text="one"))
    task = insert(Task(room=room, message=message, chain=message, assigned_role="builder", status=TaskStatus.PENDING, title="one"))
    assert Task.objects.get(pk=task.pk).look_at == task.plan_look() is not None


def test_the_events_of_a_unit_are_written_together_at_its_end(room: Room) -> None:
    before = Event.objects.count()
    with one_unit(), one_unit():
        for number in range(3):
            record_event(room, f"act-{number}", actor="alice", room_id=room.pk)
        assert Event.objects.count() == before
    assert list(Event.objects.order_by("pk").values_list("trigger", flat=True))[before:] == ["act-0", "act-1", "act-2"]


def fail_after_writing(room: Room) -> None:
    record_event(room, "goes", actor="alice", room_id=room.pk)
    insert(Message(room=room, sender="alice", text="goes"))
    raise RuntimeError


def test_an_event_inside_a_savepoint_goes_with_it(room: Room) -> None:
    with one_unit():
        record_event(room, "stays", actor="alice", room_id=room.pk)
        with pytest.raises(RuntimeError), transaction.atomic():
            fail_after_writing(room)
    assert Event.objects.filter(trigger="stays").count() == 1
    assert not Event.objects.filter(trigger="goes").exists()


def test_a_unit_that_fails_leaves_nothing(room: Room) -> None:
    with pytest.raises(RuntimeError), one_unit():
        fail_after_writing(room)
    assert not Event.objects.filter(trigger="goes").exists()
    assert not Message.objects.exists()


def pending_in(room: Room) -> Task:
    make_task(room)
    return next(PENDING.rows(room=room.pk))


def test_what_needs_no_answer_travels_together_on_postgresql_and_whoever_reads_sees_it(room: Room) -> None:
    agent, task, message = found(room), pending_in(room), Message(room=room, sender="alice", text="one")
    agent.connection, task.title = "there", "changed"
    with CaptureQueriesContext(connection) as queries, one_unit():
        save_changes(agent)
        save_changes(task)
        insert_in_time(message)
        assert Agent.objects.get(pk=agent.pk).connection == "there"
        assert Task.objects.get(pk=task.pk).title == "changed"
        assert Message.objects.filter(text="one").exists()
        record_event(room, "act", actor="alice", room_id=room.pk)
    writes = [query["sql"] for query in queries if "INSERT" in query["sql"] or "UPDATE" in query["sql"]]
    assert len(writes) == (2 if connection.vendor == "postgresql" else 4)


def test_two_writes_of_a_table_keep_their_order(room: Room) -> None:
    agent = found(room)
    with one_unit():
        for name in ("first", "second"):
            agent.connection = name
            save_changes(agent)
    assert Agent.objects.get(pk=agent.pk).connection == "second"


def save_in_a_unit(*rows: Model) -> None:
    with one_unit():
        for row in rows:
            save_changes(row)


def test_a_write_that_meets_no_row_ends_the_unit_with_all_that_travelled_with_it(room: Room) -> None:
    agent, task = found(room), pending_in(room)
    agent.connection, task.title = "there", "changed"
    Task.objects.filter(pk=task.pk).delete()
    with pytest.raises(DatabaseError, match="it is gone"):
        save_in_a_unit(agent, task)
    assert Agent.objects.get(pk=agent.pk).connection == ""


def save_and_claim_twice(agent: Agent, task: Task) -> None:
    with one_unit():
        save_changes(agent)
        for attempt in (1, 2):
            insert_in_time(Claim(task=task, agent=agent, incarnation="one", attempt=attempt, round=1))


def test_a_constraint_that_is_violated_by_a_write_ends_the_unit(room: Room) -> None:
    agent, task = found(room), make_task(room)
    agent.connection = "there"
    with pytest.raises(IntegrityError):
        save_and_claim_twice(agent, task)
    assert Agent.objects.get(pk=agent.pk).connection == ""
    assert not Claim.objects.exists()


def fail_after_saving(row: Model) -> None:
    with one_unit():
        save_changes(row)
        raise RuntimeError


def test_what_waits_inside_of_a_savepoint_goes_with_it(room: Room) -> None:
    agent, task = found(room), pending_in(room)
    with one_unit():
        agent.connection = "there"
        save_changes(agent)
        task.title = "changed"
        with pytest.raises(RuntimeError), transaction.atomic():
            fail_after_saving(task)
    assert Agent.objects.get(pk=agent.pk).connection == "there"
    assert Task.objects.get(pk=task.pk).title != "changed"


ELSEWHERE = timezone(timedelta(hours=2))
SAMPLES: dict[Any, list[Any]] = {
    models.DateTimeField: [
        datetime(2026, 11, 27, 12, 30, 0, 5, tzinfo=UTC),
        datetime(2026, 11, 27, tzinfo=ELSEWHERE),
        None,
    ],
    models.JSONField: [{"a": [1, None, "ü"]}, [], None],
    models.BooleanField: [True, False],
    models.IntegerField: [0, 7, None],
    models.ForeignKey: [7, None],
    models.CharField: ["", "text", TaskStatus.PENDING],
    models.TextField: ["", "text\nmore"],
}


def as_sent(value: Any) -> Any:
    return (type(value), value.obj) if hasattr(value, "obj") else value  # psycopg's Jsonb objects are never equal


@pytest.mark.parametrize("model", [*apps.get_app_config("chatroom").get_models(), *apps.get_app_config("agents").get_models()])
def test_every_column_is_stored_as_the_orm_stores_it(model: type[Model]) -> None:
    for field in model._meta.concrete_fields:
        convert = converter(field)
        for value in next((values for kind, values in SAMPLES.items() if isinstance(field, kind)), []):
            stored = value if convert is None else convert(value)
            assert as_sent(stored) == as_sent(field.get_db_prep_save(value, connection)), (field, value)


def test_a_new_row_is_what_the_model_makes_of_the_same_values(room: Room) -> None:
    values: dict[str, Any] = {"room_id": room.pk, "subject": "task", "subject_id": 7, "trigger": "create", "actor": "alice"}
    quick, same = new(Event, **values), Event(**values)
    assert {**quick.__dict__, "_state": 0} == {**same.__dict__, "_state": 0}
    assert quick.data is not new(Event, **values).data
    with pytest.raises(TypeError, match="has no column rom_id"):
        new(Event, rom_id=1)


def make_room_anew(slug: str) -> None:
    with transaction.atomic():
        columns, values = "slug, name, team, fail_fast, created_at", [slug, "", "[]", False, as_parameter(now())]
        change(f"INSERT INTO chatroom_room ({columns}) VALUES (%s, %s, %s, %s, %s)", values)


@pytest.mark.parametrize("is_heard", [True, False])
def test_a_statement_fails_alike_whether_somebody_listens_or_not(room: Room, is_heard: bool) -> None:
    with CaptureQueriesContext(connection) if is_heard else nullcontext():
        assert change("UPDATE chatroom_room SET name = %s WHERE slug = %s", ["ours", room.slug]) == 1
        with pytest.raises(IntegrityError):
            make_room_anew(room.slug)
        assert fetch("SELECT name FROM chatroom_room WHERE slug = %s AND name NOT LIKE '%%never%%'", [room.slug]) == [("ours",)]
        with transaction.atomic():
            transaction.set_rollback(True)
            with pytest.raises(TransactionManagementError):
                fetch("SELECT name FROM chatroom_room WHERE slug = %s", [room.slug])
