"""Every status of an agent × every trigger, as the design's table has them, not as the code has them."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from chatroom.errors import WrongState
from chatroom.events import move
from chatroom.models import Event, Room
from tests.factories import make_agent

pytestmark = [pytest.mark.django_db, pytest.mark.scenario(21)]

ALL = "offline ready working restarting dead dead_failed_revive"
LEASE: dict[str, Any] = {"lease": now() + timedelta(days=1)}
WHY: dict[str, Any] = {"error_message": "it broke"}
# from · to · trigger · what the caller knows
TABLE: list[tuple[str, str, str, dict[str, Any]]] = [
    (ALL, "ready", "join", {"incarnation": "new", **LEASE}),
    ("dead", "ready", "resume", {"has_claim": False, **LEASE}),
    ("dead", "working", "resume", {"has_claim": True, **LEASE}),
    ("ready", "working", "claim_task", LEASE),
    ("working", "ready", "task_complete", LEASE),
    ("working", "ready", "task_released", LEASE),
    ("ready working restarting dead dead_failed_revive", "offline", "leave", {}),
    ("ready working", "dead", "heartbeat_expired", WHY),
    ("ready working", "dead", "process_exited", WHY),
    ("offline dead dead_failed_revive", "restarting", "restart_initiated", {}),
    ("ready working", "restarting", "restart_initiated", {}),
    ("restarting dead offline", "dead_failed_revive", "restart_exhausted", WHY),
    ("restarting", "dead", "restart_expired", WHY),
    ("dead dead_failed_revive", "offline", "cleanup", {}),
]
DECLARED = [(source, target, trigger, fields) for sources, target, trigger, fields in TABLE for source in sources.split()]
FIELDS_OF = {trigger: fields for _, _, trigger, fields in TABLE}
UNDECLARED = sorted({(status, trigger) for status in ALL.split() for trigger in FIELDS_OF} - {(row[0], row[2]) for row in DECLARED})


def stored(agent: Agent) -> dict[str, Any]:
    return dict(Agent.objects.values().get(pk=agent.pk))


@pytest.mark.parametrize(("source", "target", "trigger", "fields"), DECLARED)
def test_a_declared_move_goes_where_the_table_says_with_one_event(
    room: Room, source: str, target: str, trigger: str, fields: dict[str, Any]
) -> None:
    agent = make_agent(room, status=source)
    earlier = set(Event.objects.values_list("pk", flat=True))

    move(agent, trigger, actor="alice", reason="because", **fields)

    after = Agent.objects.get(pk=agent.pk)
    assert after.status == target
    assert (after.lease_expires_at is not None) == (target in {"ready", "working"})
    event = Event.objects.exclude(pk__in=earlier).get()
    found = (
        event.subject,
        event.subject_id,
        event.room_id,
        event.trigger,
        event.from_state,
        event.to_state,
        event.actor,
        event.reason,
        event.role,
    )
    assert found == ("agent", agent.pk, room.pk, trigger, source, target, "alice", "because", "builder")


@pytest.mark.parametrize(("status", "trigger"), UNDECLARED)
def test_an_undeclared_move_raises_and_changes_nothing(room: Room, status: str, trigger: str) -> None:
    agent = make_agent(room, status=status)
    before, events = stored(agent), Event.objects.count()

    with pytest.raises(WrongState) as refusal:
        move(agent, trigger, actor="alice", **FIELDS_OF[trigger])

    assert (stored(agent), Event.objects.count()) == (before, events)
    assert (refusal.value.status, refusal.value.code, refusal.value.current) == (409, "wrong_state", status)
    assert refusal.value.allowed == sorted({row[2] for row in DECLARED if row[0] == status})


def test_the_table_knows_every_status_and_every_trigger() -> None:
    assert set(ALL.split()) == set(AgentStatus.values)
    known: Any = Agent()
    assert {transition.name for transition in known.get_all_status_transitions()} == set(FIELDS_OF)


def test_a_status_cannot_be_assigned(room: Room) -> None:
    agent = make_agent(room)
    with pytest.raises(AttributeError):
        agent.status = AgentStatus.OFFLINE
    assert Agent.objects.get(pk=agent.pk).status == AgentStatus.READY


@pytest.mark.parametrize("trigger", ["process_exited", "restart_initiated", "leave"])
def test_a_process_that_ended_can_not_speak_for_the_agent_any_more(room: Room, trigger: str) -> None:
    agent = make_agent(room)
    move(agent, trigger, actor="daemon", **FIELDS_OF[trigger])
    assert (agent.incarnation, agent.connection, agent.waiting_since) == ("", "", None)


def test_a_lease_that_ran_out_leaves_the_incarnation_so_that_it_can_resume(room: Room) -> None:
    agent = make_agent(room, incarnation="me")
    move(agent, "heartbeat_expired", actor="sweep", error_message="silent")
    assert (agent.incarnation, agent.error_message) == ("me", "silent")


def test_the_error_stays_visible_until_the_next_join(room: Room) -> None:
    agent = make_agent(room, status=AgentStatus.DEAD, error_message="it broke")
    move(agent, "restart_initiated", actor="alice")
    assert agent.error_message == "it broke"
    move(agent, "join", actor="builder", incarnation="new", **LEASE)
    assert agent.error_message == ""
