from collections.abc import Callable

from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from agents.models import Agent
from agents.services import build_prompt, dismiss_agent, leave_agent, start_command
from chatroom.errors import NotFound
from chatroom.models import Event, Membership
from chatroom.views.access import PageRequest, done, room_act, room_page, server_url

AGENT_ACTS: dict[str, tuple[Callable[..., Agent], str]] = {
    "leave": (leave_agent, "Stopped: its program is told at its next call."),
    "dismiss": (dismiss_agent, "Dismissed."),
}


def find_agent(membership: Membership, role: str) -> Agent:
    agent = Agent.objects.select_related("room").filter(room=membership.room, role=role).first()
    if agent is None:
        raise Http404(f"there is no role {role} in {membership.room}")
    return agent


@room_act
def agent_act(request: PageRequest, membership: Membership, role: str, act: str) -> HttpResponse:
    if act not in AGENT_ACTS:
        raise NotFound(f"there is no act {act!r}: expected one of {', '.join(AGENT_ACTS)}")
    service, said = AGENT_ACTS[act]
    service(membership.room_id, role=role, actor=request.user.get_username())
    return done(request, membership, said, anchor=f"agent-{role}")


@require_safe
@room_page
def agent_history(request: PageRequest, membership: Membership, role: str) -> HttpResponse:
    agent = find_agent(membership, role)
    events = Event.objects.filter(room=membership.room, subject="agent", subject_id=agent.pk).order_by("-pk")[:50]
    return render(request, "chatroom/_history.html", {"events": events})


@require_safe
@room_page
def agent_prompt(request: PageRequest, membership: Membership, role: str) -> HttpResponse:
    agent, url = find_agent(membership, role), server_url(request)
    context = {"agent": agent, "prompt": build_prompt(agent, server_url=url), "command": start_command(agent, server_url=url)}
    return render(request, "agents/_prompt.html", context)
