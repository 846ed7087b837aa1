"""The last 24 hours of an agent as one line of colours, from its events."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.timezone import now

from agents.models import Agent
from chatroom.models import Event
from chatroom.words import describe_event

SPAN = timedelta(hours=24)
WIDTH = 1440
# The newest changes are enough to draw: a busy agent's older ones would be thinner than a line.
MOST_EVENTS = 240
THINNEST = 3.0


@dataclass
class Stretch:
    """One status over a time. `x` and `width` are minutes from the lane's left edge."""

    status: str
    x: float
    width: float
    title: str


@dataclass
class Lane:
    agent: Agent
    stretches: list[Stretch]


def read_lanes(agents: Iterable[Agent]) -> list[Lane]:
    agents = list(agents)
    end = now()
    events: dict[int, list[Event]] = defaultdict(list)
    newest = Event.objects.filter(subject="agent", subject_id__in=[agent.pk for agent in agents], created_at__gt=end - SPAN).order_by("-pk")
    for event in newest[: MOST_EVENTS * max(1, min(len(agents), 20))]:
        if event.from_state != event.to_state and len(events[event.subject_id]) < MOST_EVENTS:
            events[event.subject_id].append(event)
    return [Lane(agent, stretches(agent, events[agent.pk][::-1], end=end)) for agent in agents]


def stretches(agent: Agent, events: list[Event], *, end: datetime) -> list[Stretch]:
    """From the first known status to now; neighbours of one status, and what is too thin to see, are joined to what stands before."""
    start = end - SPAN
    if not events:
        return [Stretch(agent.status, 0, WIDTH, f"{agent.get_status_display()} all day")] if agent.status_since < start else []
    drawn: list[Stretch] = []
    bounds = [*(event.created_at for event in events[1:]), end]
    first = events[0]
    if first.from_state:
        drawn.append(Stretch(first.from_state, 0, minutes(first.created_at - start), f"{first.from_state} before"))
    for event, until in zip(events, bounds, strict=True):
        x, width = minutes(event.created_at - start), minutes(until - event.created_at)
        if drawn and (drawn[-1].status == event.to_state or width < THINNEST) and not is_grave(event):
            drawn[-1].width = x + width - drawn[-1].x
        else:
            title = f"{event.created_at:%H:%M} UTC {event.to_state.replace('_', ' ')}: {describe_event(event)}"
            drawn.append(Stretch(event.to_state, x, max(width, THINNEST), title))
    return drawn


def is_grave(event: Event) -> bool:
    """Never joined to its neighbour, however short: these are what one looks for."""
    return event.to_state in {"dead", "dead_failed_revive"}


def minutes(span: timedelta) -> float:
    return round(max(0.0, span / timedelta(minutes=1)), 1)
