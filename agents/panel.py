"""The agents of a room as its page shows them."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.conf import settings
from django.db.models import Count, Max
from django.utils.timezone import now

from agents.lane import Lane, read_lanes
from agents.models import Agent, AgentStatus, Claim
from agents.models.agent import LIVE
from chatroom.board import last_events
from chatroom.contributions import contributed
from chatroom.feed import Fragment, Look
from chatroom.models import Event, Message, MessageKind, Notice, Room, Task
from chatroom.panel import MOST_CARDS, Card, Goings
from chatroom.words import describe_event

# Up to this many agents, a page that opens or comes back gets every row anew; beyond, only the changed ones.
FEW = 50
LAST_LINES = 4
S = AgentStatus


@dataclass(frozen=True)
class Extra:
    """What another app adds to an agent: a template for each of these places, all with this context as `extra`."""

    context: Mapping[str, Any]
    line: str = ""  # below its status
    when: str = ""  # beside its status, in place of the time
    card: str = ""  # on its card on top
    acts: str = ""  # among that card's buttons
    more: str = ""  # in its details
    is_doubted: bool = False  # it says already that nobody can confirm the status
    has_lines: bool = False  # it shows the last lines of output


@dataclass
class AgentRow:
    agent: Agent
    claim: Claim | None = None
    last_event: Event | None = None
    extras: list[Extra] = field(default_factory=list)
    progress_at: datetime | None = None

    @property
    def template(self) -> str:
        return f"agents/status/_{self.agent.status}.html"

    @property
    def task(self) -> Task | None:
        return self.claim.task if self.claim else None

    @property
    def why(self) -> str:
        error, said = self.agent.error_message, describe_event(self.last_event) if self.last_event else "never started"
        if self.agent.status in {S.DEAD, S.DEAD_FAILED_REVIVE}:
            return error or said
        return f"{said} · before: {error}" if error and error not in said else said

    @property
    def is_away(self) -> bool:
        """Ready, but its program is between two calls: it does not wait yet, or not any more."""
        return self.agent.status == S.READY and self.agent.waiting_since is None

    @property
    def when(self) -> Extra | None:
        return next((extra for extra in self.extras if extra.when), None)

    @property
    def is_doubted(self) -> bool:
        return any(extra.is_doubted for extra in self.extras)

    @property
    def has_lines(self) -> bool:
        return any(extra.has_lines for extra in self.extras)

    @property
    def is_overdue(self) -> bool:
        """Nobody vouches for it now, and the sweep has not yet, or may not yet, declare it dead."""
        lease = self.agent.lease_expires_at
        return self.agent.is_live and lease is not None and lease < now()

    @property
    def spoke_at(self) -> datetime | None:
        """The last that its program said of its task."""
        claim = self.claim if self.agent.status == S.WORKING else None
        return max(filter(None, (claim.delivered_at, claim.started_at, self.progress_at)), default=None) if claim else None

    @property
    def warns_at(self) -> datetime | None:
        return self.spoke_at + timedelta(seconds=settings.RUN_SILENCE_WARNING) if self.spoke_at else None

    @property
    def is_silent(self) -> bool:
        """A warning and nothing more: long work may well be silent."""
        return self.warns_at is not None and self.warns_at < now()

    @property
    def can_leave(self) -> bool:
        return self.agent.is_custom and self.agent.status not in {S.OFFLINE, S.DEAD, S.DEAD_FAILED_REVIVE}

    @property
    def can_dismiss(self) -> bool:
        return self.agent.status in {S.DEAD, S.DEAD_FAILED_REVIVE}

    @property
    def needs_start(self) -> bool:
        return self.agent.is_custom and not self.agent.is_live

    @property
    def has_card(self) -> bool:
        """It stands on top of the panel as well, with its buttons."""
        return self.agent.status in {S.DEAD, S.DEAD_FAILED_REVIVE}

    @cached_property
    def vitals(self) -> tuple[object, ...]:
        """What changes without an event."""
        agent = self.agent
        return (agent.status, agent.lease_expires_at, agent.last_seen_at, agent.waiting_since, agent.error_message, self.is_overdue)


def read_rows(agents: Iterable[Agent]) -> list[AgentRow]:
    """With what each holds, and what happened to it last: a fixed number of queries."""
    agents = list(agents)
    ids = [agent.pk for agent in agents]
    claims = {claim.agent_id: claim for claim in Claim.objects.open().filter(agent__in=ids).select_related("task")}
    events = last_events("agent", ids)
    rows = {agent.pk: AgentRow(agent, claims.get(agent.pk), events.get(agent.pk)) for agent in agents}
    said = Message.objects.filter(task__in=[claim.task_id for claim in claims.values()], kind=MessageKind.PROGRESS)
    progress = dict(said.order_by().values_list("task").annotate(last=Max("created_at")))
    for agent_id, claim in claims.items():
        said_at = progress.get(claim.task_id)
        rows[agent_id].progress_at = said_at if said_at and said_at > claim.offered_at else None  # not what another said before
    for reader in contributed("agent_extra"):
        for agent_id, extra in reader(agents).items():
            rows[agent_id].extras.append(extra)
    return list(rows.values())


def agents_of(room: Room) -> list[Agent]:
    """In the order in which work travels."""
    places = {role: place for place, role in enumerate(room.team)}
    agents = Agent.objects.filter(room=room).select_related("room")
    return sorted(agents, key=lambda agent: places.get(agent.role, len(places)))


def row_fragment(room: Room, row: AgentRow) -> Fragment:
    return Fragment(f"agent-{row.agent.role}", "agents/_agent.html", {"room": room, "row": row})


def lane_fragment(lane: Lane) -> Fragment:
    return Fragment(f"lane-{lane.agent.role}", "agents/_lane.html", {"lane": lane})


def count_agents(room: Room) -> dict[str, int]:
    counts = Counter(dict(Agent.objects.filter(room=room).order_by().values_list("status").annotate(count=Count("pk"))))
    return {"total": sum(counts.values()), "reachable": sum(counts[status] for status in LIVE)}


class AgentsPart:
    def read(self, look: Look) -> Iterable[Fragment]:
        roles = look.roles("agent", "task", "run", "command")
        agents = Agent.objects.filter(room=look.room).select_related("room")
        # A machine that comes or goes changes what is said of every agent that lives there.
        is_about_a_machine = any(event.subject == "room" and event.trigger.startswith("machine_") for event in look.events)
        if not (look.everything or is_about_a_machine or (look.is_new and len(look.room.team) <= FEW)):
            agents = agents.filter(role__in=roles) if roles else agents.none()
        rows = read_rows(agents)
        for row in rows:
            yield row_fragment(look.room, row)
        if rows:
            yield Fragment("agents-head", "agents/_head.html", {"room": look.room, "counts": count_agents(look.room)})

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        """Leases and signs of life, which write no event; and the lanes of those whose status moved."""
        rows = [AgentRow(agent) for agent in agents_of(room)]
        known: dict[int, tuple[object, ...]] = memory.get("vitals", {})
        memory["vitals"] = {row.agent.pk: row.vitals for row in rows}
        changed = [row.agent for row in rows if known and known.get(row.agent.pk) != row.vitals]
        for row in read_rows(changed):
            yield row_fragment(room, row)
        for lane in read_lanes(agent for agent in changed if known[agent.pk][:1] != (agent.status,)):
            yield lane_fragment(lane)


def agent_cards(room: Room) -> Iterable[Card]:
    dead = list(Agent.objects.filter(room=room).needs_attention().select_related("room"))
    for row in read_rows(dead):
        order = 0 if row.agent.status == S.DEAD_FAILED_REVIVE else 1
        yield Card(
            f"attention-{row.agent.role}", "agents/_card.html", {"row": row, "lines": last_lines(row.agent)}, order, row.agent.status_since
        )


def waiting_cards(room: Room) -> Iterable[Card]:
    """Of work that nobody takes by itself: why, and the button that helps."""
    notices = list(Notice.objects.filter(room=room).open().select_related("task")[:MOST_CARDS])
    roles = {notice.task.assigned_role for notice in notices if notice.task}
    agents = Agent.objects.filter(room=room, role__in=roles).select_related("room") if roles else []
    rows = {row.agent.role: row for row in read_rows(agents)}
    for notice in notices:
        row = rows.get(notice.task.assigned_role) if notice.task else None
        yield Card(f"attention-notice-{notice.pk}", "agents/_waiting_card.html", {"notice": notice, "row": row}, 15, notice.created_at)


def last_lines(agent: Agent) -> list[Event]:
    """What led to it: the last events, oldest first."""
    since = agent.status_since - timedelta(hours=24)
    events = Event.objects.filter(subject="agent", subject_id=agent.pk, created_at__gt=since).order_by("-pk")
    return list(events[:LAST_LINES])[::-1]


def agent_goings(goings: dict[int, Goings]) -> None:
    counts = Agent.objects.filter(room__in=goings, status__in=[S.READY, S.DEAD, S.DEAD_FAILED_REVIVE]).order_by()
    for room_id, status, count in counts.values_list("room", "status").annotate(count=Count("pk")):
        if status == S.READY:
            goings[room_id].ready += count
        else:
            goings[room_id].attention += count
