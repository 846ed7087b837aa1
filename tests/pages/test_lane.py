"""The last 24 hours of an agent, drawn from its events."""

from datetime import timedelta

import pytest
from django.utils.timezone import now

from agents.lane import WIDTH, read_lanes
from agents.models import Agent, AgentStatus
from chatroom.models import Event, Room
from tests.factories import make_agent

S = AgentStatus


def happened(agent: Agent, minutes_ago: float, before: str, after: str, trigger: str = "join") -> None:
    event = Event.objects.create(
        room=agent.room,
        subject="agent",
        subject_id=agent.pk,
        role=agent.role,
        trigger=trigger,
        from_state=before,
        to_state=after,
        actor="x",
    )
    Event.objects.filter(pk=event.pk).update(created_at=now() - timedelta(minutes=minutes_ago))


@pytest.fixture
def agent(room: Room) -> Agent:
    return make_agent(room, status=S.READY)


def drawn(agent: Agent) -> list[tuple[str, float, float]]:
    [lane] = read_lanes([agent])
    return [(stretch.status, stretch.x, stretch.width) for stretch in lane.stretches]


def test_a_day_without_a_change_is_one_stretch(room: Room) -> None:
    agent = make_agent(room, status=S.OFFLINE, status_since=now() - timedelta(days=3))
    assert drawn(agent) == [("offline", 0, WIDTH)]


def test_an_agent_that_never_was_has_no_lane(room: Room) -> None:
    assert drawn(make_agent(room, status=S.OFFLINE)) == []


def test_each_status_takes_the_time_it_lasted(agent: Agent) -> None:
    happened(agent, 600, "offline", "ready")
    happened(agent, 240, "ready", "working", "claim_task")
    rounded = [(status, round(x), round(width)) for status, x, width in drawn(agent)]
    assert rounded == [("offline", 0, 840), ("ready", 840, 360), ("working", 1200, 240)]


def test_what_is_too_short_to_see_joins_its_neighbour(agent: Agent) -> None:
    happened(agent, 600, "offline", "ready")
    for minute in range(100, 110):
        happened(agent, minute + 0.5, "ready", "working", "claim_task")
        happened(agent, minute, "working", "ready", "task_complete")
    assert len(drawn(agent)) == 2


def test_a_death_is_seen_however_short_it_was(agent: Agent) -> None:
    happened(agent, 600, "offline", "ready")
    happened(agent, 300.1, "ready", "dead", "heartbeat_expired")
    happened(agent, 300, "dead", "ready", "resume")
    assert "dead" in [status for status, _, _ in drawn(agent)]


def test_older_days_and_other_agents_are_not_drawn(agent: Agent, room: Room) -> None:
    happened(agent, 3000, "ready", "dead", "heartbeat_expired")
    happened(Agent.objects.select_related("room").get(room=room, role="reviewer"), 100, "ready", "dead", "heartbeat_expired")
    assert "dead" not in [status for status, _, _ in drawn(agent)]
