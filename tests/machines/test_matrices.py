"""Machine.status, Run.state and Command.state × every trigger, as the design's tables have them, not as the code has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import models

from agents.models import Agent
from chatroom.errors import WrongState
from chatroom.events import move
from chatroom.models import Event, Room
from machines.models import Act, Command, CommandState, Machine, MachineStatus, Run, RunState
from tests.factories import make_machine, make_placement, make_run

pytestmark = [pytest.mark.django_db, pytest.mark.scenario(62)]

WHY = {"outcome": "because"}
Row = tuple[str, str, str, dict[str, Any]]


@dataclass(frozen=True)
class Table:
    model: type[models.Model]
    field: str
    all: str
    rows: list[Row]  # from · to · trigger · what the caller knows

    @property
    def declared(self) -> list[Row]:
        return [(source, target, trigger, fields) for sources, target, trigger, fields in self.rows for source in sources.split()]

    @property
    def fields(self) -> dict[str, dict[str, Any]]:
        return {trigger: fields for _, _, trigger, fields in self.rows}

    @property
    def undeclared(self) -> list[tuple[str, str]]:
        known = {(source, trigger) for source, _, trigger, _ in self.declared}
        return sorted({(state, trigger) for state in self.all.split() for trigger in self.fields} - known)


BEFORE_END, IN_FLIGHT = "validating ready preparing running", "pending dispatched"
TABLES = {
    "machine": Table(
        Machine,
        "status",
        "connected unresponsive disconnected",
        [
            ("connected", "unresponsive", "miss", {}),
            ("connected unresponsive", "disconnected", "disconnect", {}),
            ("unresponsive disconnected", "connected", "connect", {}),
        ],
    ),
    "run": Table(
        Run,
        "state",
        "validating ready preparing running aborting completed failed",
        [
            ("validating", "ready", "validated", {}),
            ("ready", "preparing", "prepare", {}),
            ("preparing", "running", "launch", {"pid": 4711}),
            ("running", "completed", "finish", {}),
            (BEFORE_END, "aborting", "abort", {}),
            ("aborting", "completed", "aborted", {}),
            ("aborting", "failed", "timed_out", {}),
            (f"{BEFORE_END} aborting", "failed", "fail", {}),
        ],
    ),
    # A command may end before it was sent: stopped where nothing runs, cancelled by a newer one, too old.
    "command": Table(
        Command,
        "state",
        "pending dispatched completed failed cancelled expired",
        [
            ("pending", "dispatched", "dispatch", {}),
            (IN_FLIGHT, "completed", "complete", WHY),
            (IN_FLIGHT, "failed", "fail", WHY),
            (IN_FLIGHT, "cancelled", "cancel", WHY),
            (IN_FLIGHT, "expired", "expire", WHY),
        ],
    ),
}
DECLARED = [(name, *row) for name, table in TABLES.items() for row in table.declared]
UNDECLARED = [(name, *pair) for name, table in TABLES.items() for pair in table.undeclared]


@pytest.fixture
def make(room: Room, alice: User) -> Callable[[str, str], Any]:
    def in_state(name: str, state: str) -> Any:
        if name == "machine":
            return make_machine(alice, status=state)
        placement = make_placement(make_machine(alice), Agent.objects.get(room=room, role="builder"))
        if name == "run":
            return make_run(placement, state=state, joined=False)
        return Command.objects.create(machine=placement.machine, agent=placement.agent, act=Act.START, state=state, actor="alice")

    return in_state


def stored(subject: models.Model) -> dict[str, Any]:
    return type(subject)._default_manager.values().get(pk=subject.pk)


@pytest.mark.parametrize(("name", "source", "target", "trigger", "fields"), DECLARED)
def test_a_declared_move_goes_where_the_table_says_with_one_event(
    make: Callable[[str, str], Any], room: Room, name: str, source: str, target: str, trigger: str, fields: dict[str, Any]
) -> None:
    subject = make(name, source)
    earlier = set(Event.objects.values_list("pk", flat=True))

    move(subject, trigger, actor="laptop-7", reason="because", **fields)

    assert stored(subject)[TABLES[name].field] == target
    event = Event.objects.exclude(pk__in=earlier).get()
    found = (event.subject, event.subject_id, event.trigger, event.from_state, event.to_state, event.actor, event.reason)
    assert found == (name, subject.pk, trigger, source, target, "laptop-7", "because")
    assert (event.room_id, event.role) == ((None, "") if name == "machine" else (room.pk, "builder"))


@pytest.mark.parametrize(("name", "state", "trigger"), UNDECLARED)
def test_an_undeclared_move_raises_and_changes_nothing(make: Callable[[str, str], Any], name: str, state: str, trigger: str) -> None:
    subject, table = make(name, state), TABLES[name]
    before, events = stored(subject), Event.objects.count()

    with pytest.raises(WrongState) as refusal:
        move(subject, trigger, actor="laptop-7", **table.fields[trigger])

    assert (stored(subject), Event.objects.count()) == (before, events)
    assert (refusal.value.code, refusal.value.current) == ("wrong_state", state)
    assert refusal.value.allowed == sorted({row[2] for row in table.declared if row[0] == state})


@pytest.mark.parametrize("name", TABLES)
def test_the_table_knows_every_state_and_every_trigger(name: str) -> None:
    table, choices = TABLES[name], {"machine": MachineStatus, "run": RunState, "command": CommandState}[name]
    assert set(table.all.split()) == set(choices.values)
    moves = getattr(table.model(), f"get_all_{table.field}_transitions")()
    assert {transition.name for transition in moves} == set(table.fields)


def test_a_state_cannot_be_assigned(make: Callable[[str, str], Any]) -> None:
    run = make("run", "running")
    with pytest.raises(AttributeError):
        run.state = RunState.COMPLETED
    assert stored(run)["state"] == RunState.RUNNING


@pytest.mark.parametrize(
    ("trigger", "source"), [("finish", "running"), ("aborted", "aborting"), ("timed_out", "aborting"), ("fail", "ready")]
)
def test_every_end_of_a_run_says_when(make: Callable[[str, str], Any], trigger: str, source: str) -> None:
    run = make("run", source)
    move(run, trigger, actor="laptop-7")
    assert stored(run)["ended_at"] is not None


def test_an_absent_machine_has_no_voice(make: Callable[[str, str], Any]) -> None:
    machine = make("machine", "connected")
    move(machine, "disconnect", actor="chatroom")
    assert (stored(machine)["connection"], stored(machine)["instance"]) == ("", "instance-1")
