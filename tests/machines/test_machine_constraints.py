"""Every rule of machines, commands and runs that the database itself guards, violated with raw SQL."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from django.apps import apps
from django.db import IntegrityError, connection, models, transaction
from django.utils.timezone import now

from agents.models import Agent
from machines.models import Act, Command, Machine, Run, RunLog
from tests.factories import make_machine, make_placement, make_run

from .playing import Daemon

pytestmark = pytest.mark.django_db

Violation = Callable[[Daemon], tuple[str, list[Any]]]
VIOLATIONS: dict[str, Violation] = {}


def violates(name: str) -> Callable[[Violation], Violation]:
    def keep(function: Violation) -> Violation:
        VIOLATIONS[name] = function
        return function

    return keep


def bogus(column: str, row: models.Model) -> tuple[str, list[Any]]:
    return f"UPDATE {row._meta.db_table} SET {column} = %s WHERE id = %s", ["bogus", row.pk]


def make_command(daemon: Daemon, act: str = Act.START, state: str = "pending") -> Command:
    return Command.objects.create(machine=daemon.machine, agent=daemon.agent, act=act, state=state, actor="alice")


def in_state(row: models.Model, state: str) -> tuple[str, list[Any]]:
    return f"UPDATE {row._meta.db_table} SET state = %s WHERE id = %s", [state, row.pk]


@violates("machine_name_once")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    other = make_machine(daemon.machine.owner, "other")
    return "UPDATE machines_machine SET name = %s WHERE id = %s", [daemon.machine.name, other.pk]


@violates("machine_status_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return bogus("status", daemon.machine)


@violates("placement_desired_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return "UPDATE machines_placement SET desired_state = 'bogus'", []


@violates("placement_mode_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return "UPDATE machines_placement SET mode = 'odd'", []


@violates("Placement.agent")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    other = make_placement(daemon.machine, Agent.objects.get(room=daemon.room, role="reviewer"))
    return "UPDATE machines_placement SET agent_id = %s WHERE id = %s", [daemon.agent.pk, other.pk]


@violates("run_state_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return bogus("state", make_run(daemon.placement))


@violates("run_verdict_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return bogus("verdict", make_run(daemon.placement))


@violates("run_once_per_request")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    first, second = (make_run(daemon.placement, state="failed") for _ in range(2))
    return "UPDATE machines_run SET request = %s WHERE id = %s", [first.request, second.pk]


@violates("run_one_unfinished_per_agent")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    make_run(daemon.placement)
    return in_state(make_run(daemon.placement, state="failed"), "validating")


@violates("run_one_unfinished_per_agent (aborting)")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    make_run(daemon.placement, state="aborting")
    return in_state(make_run(daemon.placement, state="completed"), "running")


@violates("command_state_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return bogus("state", make_command(daemon))


@violates("command_act_known")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    return bogus("act", make_command(daemon))


def second_start(first: str, second: str, state: str) -> Violation:
    def violate(daemon: Daemon) -> tuple[str, list[Any]]:
        make_command(daemon, first, state)
        return in_state(make_command(daemon, second, "failed"), "pending")

    return violate


for _first, _second in product([Act.START, Act.RESTART], repeat=2):
    violates(f"command_one_start_in_flight ({_first}, {_second})")(second_start(_first, _second, "dispatched"))


@violates("RunLog.run")
def _(daemon: Daemon) -> tuple[str, list[Any]]:
    first, second = (make_run(daemon.placement, state="failed") for _ in range(2))
    log = RunLog.objects.create(run=first)
    RunLog.objects.create(run=second)
    return "UPDATE machines_runlog SET run_id = %s WHERE id = %s", [second.pk, log.pk]


def guarded() -> dict[str, models.UniqueConstraint | models.CheckConstraint | models.Field]:
    found: dict[str, models.UniqueConstraint | models.CheckConstraint | models.Field] = {}
    for model in apps.get_app_config("machines").get_models():
        found |= {constraint.name: constraint for constraint in model._meta.constraints}  # type: ignore[misc]
        unique = [field for field in model._meta.local_fields if field.unique and not field.primary_key]
        found |= {f"{model.__name__}.{field.name}": field for field in unique}
    return found


def columns_of(rule: object) -> list[str]:
    return list(rule.fields) if isinstance(rule, models.UniqueConstraint) else [getattr(rule, "column", "")]


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_database_refuses(daemon: Daemon, name: str) -> None:
    rule_name = name.partition(" ")[0]
    statement, values = VIOLATIONS[name](daemon)
    with pytest.raises(IntegrityError) as refusal, transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)
    # PostgreSQL names the rule; SQLite the columns of one that is about uniqueness.
    said = str(refusal.value)
    assert rule_name in said or all(column in said for column in columns_of(guarded()[rule_name])), said


def test_no_rule_of_the_database_is_without_its_violation() -> None:
    assert {name.split(" ")[0] for name in VIOLATIONS} == set(guarded())


def test_a_name_is_free_again_once_its_machine_was_revoked(machine: Machine) -> None:
    Machine.objects.filter(pk=machine.pk).update(revoked_at=now())
    assert make_machine(machine.owner, machine.name).pk != machine.pk


def test_any_number_of_runs_and_starts_may_have_ended(daemon: Daemon) -> None:
    for _ in range(2):
        make_run(daemon.placement, state="failed")
        make_command(daemon, state="cancelled")
    assert (Run.objects.count(), Command.objects.count()) == (2, 2)
