"""Every rule that the database itself guards, violated with raw SQL."""

from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim, Incarnation
from chatroom.models import DeviceGrant, IdempotencyRecord, Job, Membership, Message, Notice, Pulse, Room, Task, TaskStatus, Token
from chatroom.services.rooms import create_room
from chatroom.services.tokens import start_device_grant
from tests.factories import make_agent, make_claim, make_held_task, make_task, make_user

pytestmark = pytest.mark.django_db

Statement = tuple[str, list[Any]]
Violation = Callable[[Room], Statement]
VIOLATIONS: dict[str, Violation] = {}


def violates(*names: str) -> Callable[[Violation], Violation]:
    def keep(function: Violation) -> Violation:
        VIOLATIONS.update(dict.fromkeys(names, function))
        return function

    return keep


def bogus(column: str, row: models.Model) -> Statement:
    return f"UPDATE {row._meta.db_table} SET {column} = %s WHERE id = %s", ["bogus", row.pk]


def copied(column: str, row: models.Model, other: models.Model) -> Statement:
    return f"UPDATE {row._meta.db_table} SET {column} = %s WHERE id = %s", [getattr(other, column), row.pk]


def opened(claim: Claim) -> Statement:
    return "UPDATE agents_claim SET ended_at = NULL, outcome = '' WHERE id = %s", [claim.pk]


@violates("task_status_known")
def _(room: Room) -> Statement:
    return bogus("status", make_task(room))


@violates("task_origin_known")
def _(room: Room) -> Statement:
    return bogus("origin", make_task(room))


def second_active(room: Room, first: str, second: str) -> Statement:
    make_task(room, status=first)
    return "UPDATE chatroom_task SET status = %s WHERE id = %s", [second, make_task(room, status=TaskStatus.QUEUED).pk]


@violates("task_one_active_per_role")
def _(room: Room) -> Statement:
    return second_active(room, "pending", "pending")


@violates("task_one_active_per_role (acknowledged)")
def _(room: Room) -> Statement:
    return second_active(room, "acknowledged", "pending")


@violates("task_one_active_per_role (in progress)")
def _(room: Room) -> Statement:
    return second_active(room, "in_progress", "acknowledged")


@violates("agent_one_per_role")
def _(room: Room) -> Statement:
    return "UPDATE agents_agent SET role = 'builder' WHERE role = 'reviewer'", []


@violates("agent_status_known")
def _(room: Room) -> Statement:
    return bogus("status", make_agent(room))


@violates("agent_kind_known")
def _(room: Room) -> Statement:
    return "UPDATE agents_agent SET kind = 'bogus'", []


@violates("agent_live_has_lease")
def _(room: Room) -> Statement:
    return "UPDATE agents_agent SET lease_expires_at = NULL WHERE id = %s", [make_agent(room, status=AgentStatus.READY).pk]


@violates("agent_live_has_lease (working)")
def _(room: Room) -> Statement:
    return "UPDATE agents_agent SET status = 'working' WHERE id = %s", [make_agent(room, status=AgentStatus.OFFLINE).pk]


@violates("incarnation_once")
def _(room: Room) -> Statement:
    agent = make_agent(room)
    older = Incarnation.objects.create(agent=agent, key="older", ended_at=now())
    return "UPDATE agents_incarnation SET key = %s WHERE id = %s", [agent.incarnation, older.pk]


@violates("incarnation_one_current")
def _(room: Room) -> Statement:
    older = Incarnation.objects.create(agent=make_agent(room), key="older", ended_at=now())
    return "UPDATE agents_incarnation SET ended_at = NULL WHERE id = %s", [older.pk]


@violates("claim_one_open_per_task")
def _(room: Room) -> Statement:
    task, _, _ = make_held_task(room)
    return opened(make_claim(task, make_agent(room, "reviewer"), attempt=2, ended_at=now(), outcome="left"))


@violates("claim_one_open_per_agent")
def _(room: Room) -> Statement:
    _, agent, _ = make_held_task(room)
    return opened(make_claim(make_task(room, "reviewer"), agent, ended_at=now(), outcome="left"))


@violates("claim_one_per_attempt")
def _(room: Room) -> Statement:
    task, agent, _ = make_held_task(room)
    second = make_claim(task, agent, attempt=2, ended_at=now(), outcome="left")
    return "UPDATE agents_claim SET attempt = 1 WHERE id = %s", [second.pk]


@violates("claim_one_completion_per_round")
def _(room: Room) -> Statement:
    task, agent = make_task(room), make_agent(room)
    make_claim(task, agent, attempt=1, ended_at=now(), outcome="completed")
    second = make_claim(task, agent, attempt=2, ended_at=now(), outcome="left")
    return "UPDATE agents_claim SET outcome = 'completed' WHERE id = %s", [second.pk]


@violates("claim_outcome_known")
def _(room: Room) -> Statement:
    return bogus("outcome", make_claim(make_task(room), make_agent(room), ended_at=now(), outcome="left"))


@violates("claim_ended_has_outcome")
def _(room: Room) -> Statement:
    return "UPDATE agents_claim SET ended_at = %s WHERE id = %s", [now(), make_held_task(room)[2].pk]


@violates("claim_ended_has_outcome (open)")
def _(room: Room) -> Statement:
    return "UPDATE agents_claim SET outcome = 'left' WHERE id = %s", [make_held_task(room)[2].pk]


@violates("membership_one_per_person")
def _(room: Room) -> Statement:
    first, second = Membership.objects.filter(room=room)[:2]
    return copied("user_id", second, first)


@violates("membership_role_known")
def _(room: Room) -> Statement:
    return bogus("role", Membership.objects.all()[0])


@violates("message_kind_known")
def _(room: Room) -> Statement:
    return bogus("kind", Message.objects.create(room=room, sender="alice", text="hello"))


@violates("notice_once_per_episode")
def _(room: Room) -> Statement:
    first, second = (Notice.objects.create(room=room, episode=name, text="told") for name in "ab")
    return copied("episode", second, first)


@violates("job_state_known")
def _(room: Room) -> Statement:
    return bogus("state", Job.objects.create(kind="nothing"))


@violates("idempotency_once")
def _(room: Room) -> Statement:
    fields = {"principal": "user:1", "act": "send", "body_hash": "", "status_code": 201, "answer": {}}
    first, second = (IdempotencyRecord.objects.create(key=key, **fields) for key in "ab")
    return copied("key", second, first)


@violates("pulse_single")
def _(room: Room) -> Statement:
    Pulse.objects.create(pk=1)
    return "UPDATE chatroom_pulse SET id = 2", []


def token(room: Room) -> Token:
    return Token.objects.issue(kind="agent", name="t", room=room, role="builder")[0]


@violates("token_kind_known")
def _(room: Room) -> Statement:
    return bogus("kind", token(room))


@violates("token_person_has_user")
def _(room: Room) -> Statement:
    return "UPDATE chatroom_token SET kind = 'person' WHERE id = %s", [token(room).pk]


@violates("token_agent_has_role")
def _(room: Room) -> Statement:
    return "UPDATE chatroom_token SET role = '' WHERE id = %s", [token(room).pk]


@violates("token_agent_has_role (room)")
def _(room: Room) -> Statement:
    return "UPDATE chatroom_token SET room_id = NULL WHERE id = %s", [token(room).pk]


@violates("token_machine_has_machine")
def _(room: Room) -> Statement:
    return "UPDATE chatroom_token SET kind = 'machine' WHERE id = %s", [token(room).pk]


@violates("grant_state_known")
def _(room: Room) -> Statement:
    return bogus("state", start_device_grant("laptop")[1])


@violates("Token.hash")
def _(room: Room) -> Statement:
    return copied("hash", token(room), token(room))


@violates("DeviceGrant.device_hash")
def _(room: Room) -> Statement:
    return copied("device_hash", start_device_grant("a")[1], start_device_grant("b")[1])


@violates("DeviceGrant.user_code")
def _(room: Room) -> Statement:
    return copied("user_code", start_device_grant("a")[1], start_device_grant("b")[1])


@violates("Room.slug")
def _(room: Room) -> Statement:
    return copied("slug", create_room("Other", team="solo", owner=make_user("olga")), room)


@violates("Claim.key")
def _(room: Room) -> Statement:
    task, agent, first = make_held_task(room)
    return copied("key", make_claim(task, agent, attempt=2, ended_at=now(), outcome="left"), first)


def guarded() -> dict[str, models.UniqueConstraint | models.CheckConstraint | models.Field]:
    """Every constraint and every unique column of our models."""
    found: dict[str, models.UniqueConstraint | models.CheckConstraint | models.Field] = {}
    for model in [*apps.get_app_config("chatroom").get_models(), *apps.get_app_config("agents").get_models()]:
        found |= {constraint.name: constraint for constraint in model._meta.constraints}  # type: ignore[misc]
        unique = [field for field in model._meta.local_fields if field.unique and not field.primary_key]
        found |= {f"{model.__name__}.{field.name}": field for field in unique}
    return found


def columns_of(rule: object) -> list[str]:
    return list(rule.fields) if isinstance(rule, models.UniqueConstraint) else [getattr(rule, "column", "")]


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_database_refuses(room: Room, name: str) -> None:
    rule_name = name.split(" ", maxsplit=1)[0]
    statement, values = VIOLATIONS[name](room)
    with pytest.raises(IntegrityError) as refusal, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)
    # PostgreSQL names the rule; SQLite the columns of one that is about uniqueness.
    said = str(refusal.value)
    assert rule_name in said or all(column in said for column in columns_of(guarded()[rule_name])), said


def test_no_rule_of_the_database_is_without_its_violation() -> None:
    assert {name.split(" ")[0] for name in VIOLATIONS} == set(guarded())


@pytest.mark.parametrize("status", ["backlog", "queued", "pending_user_review", "completed", "closed", "failed"])
def test_any_number_of_tasks_of_a_role_may_be_inactive(room: Room, status: str) -> None:
    make_task(room, status=TaskStatus.PENDING)
    for _ in range(2):
        make_task(room, status=status)
    assert Task.objects.filter(room=room, assigned_role="builder").count() == 3


def test_the_rules_are_per_role_and_per_room(room: Room) -> None:
    other = create_room("Other", team="pair", owner=make_user("olga"))
    tasks = [make_task(where, role) for where in (room, other) for role in ("builder", "reviewer")]
    agents = [make_agent(where, role) for where in (room, other) for role in ("builder", "reviewer")]
    for task, agent in zip(tasks, agents, strict=True):
        make_claim(task, agent)
    assert Claim.objects.open().count() == 4
    assert Agent.objects.count() == 4
    assert DeviceGrant.objects.count() == 0
