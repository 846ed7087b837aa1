from typing import Any

from django import template

from agents.lane import read_lanes
from agents.models import Agent
from agents.panel import agents_of, count_agents, read_rows
from agents.services import start_command

register = template.Library()


@register.inclusion_tag("agents/_panel.html", takes_context=True)
def agents_panel(context: dict[str, Any]) -> dict[str, Any]:
    """The agents of the room a page shows."""
    room = context["room"]
    rows = read_rows(agents_of(room))
    lanes = read_lanes(row.agent for row in rows)
    names = ("room", "can_act", "is_owner", "server_url", "csrf_token", "request")
    shared = {name: context[name] for name in names if name in context}
    return {**shared, "pairs": list(zip(rows, lanes, strict=True)), "counts": count_agents(room)}


@register.simple_tag
def command_of(agent: Agent, server_url: str) -> str:
    return start_command(agent, server_url=server_url)
