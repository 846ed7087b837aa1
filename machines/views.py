"""Machines, and people's acts on the agents that live there. Each view calls one service, the same as the API."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.html import format_html
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from agents.models import Agent
from agents.views import find_agent
from chatroom.errors import ChatroomError, NotAllowed, NotFound
from chatroom.models import MemberRole, Membership
from chatroom.views.access import PageRequest, done, find_membership, refused, require_owner, room_act, room_page, server_url
from machines.configuring import ConfigurationForm, given_configuration
from machines.enrolling import Invitation, invite
from machines.fleet import MachineRow, see_machines
from machines.models import Act, Command, Machine, Placement
from machines.services.desire import abort_run, restart_agent, start_agent, stop_agent
from machines.services.moving import move_agent
from machines.services.pings import ask_machine
from machines.services.revocation import revoke_machine
from machines.tailing import read_tails

AGENT_COMMANDS: dict[str, Callable[..., Command]] = {
    "start": start_agent,
    "stop": stop_agent,
    "restart": restart_agent,
    "abort": abort_run,
}
MachineView = Callable[..., str]


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def machines(request: PageRequest) -> HttpResponse:
    """A press on Add a machine is a POST: it makes a secret."""
    if request.method != "POST":
        return show_machines(request)
    try:
        invitation = invite(request.user, request.POST, server_url=server_url(request))
    except ChatroomError as error:
        return say_refused(request, error) if request.htmx else show_machines(request, status=error.status, error=error.message)
    if request.htmx:
        return render(request, "machines/_invitation.html", {"invitation": invitation})
    return show_machines(request, invitation=invitation)


def show_machines(request: PageRequest, *, invitation: Invitation | None = None, status: int = 200, error: str = "") -> HttpResponse:
    rows: list[MachineRow] = see_machines([request.user.pk])[request.user.pk]
    context = {"rows": rows, "invitation": invitation, "error": error, "typed": request.POST}
    return render(request, "machines/machines.html", context, status=status)


def say_refused(request: PageRequest, error: ChatroomError) -> HttpResponse:
    return HttpResponse(format_html('<span class="error" role="alert">{}</span>', error.message), status=error.status)


def machine_act(view: MachineView) -> Callable[..., HttpResponse]:
    """A press of the machine's owner; whoever does not see the machine learns nothing of it. The view returns what is to be said."""

    @require_POST
    @login_required
    @wraps(view)
    def wrapper(request: PageRequest, machine_id: int) -> HttpResponse:
        machine = Machine.objects.visible_to(request.user).filter(pk=machine_id).first()
        if machine is None:
            raise Http404("there is no such machine")
        try:
            require_machine_owner(machine, request)
            said = view(request, machine)
        except ChatroomError as error:
            return refuse_act(request, error)
        if not request.htmx:
            messages.success(request, said)
            return redirect("machines")
        return render(request, "chatroom/_outcome.html", {"said": ""})  # the row itself says it, on every page that shows it

    return wrapper


def require_machine_owner(machine: Machine, request: PageRequest) -> None:
    if machine.owner_id != request.user.pk and not request.user.is_superuser:
        raise NotAllowed(f"{machine} belongs to {machine.owner}: only its owner can do this.")


def refuse_act(request: PageRequest, error: ChatroomError) -> HttpResponse:
    if request.htmx:
        return say_refused(request, error)
    if isinstance(error, NotAllowed):
        raise PermissionDenied(error.message)
    messages.error(request, error.message)
    return redirect("machines")


@machine_act
def machine_ping(request: PageRequest, machine: Machine) -> str:
    ask_machine(machine, Act.PING, actor=request.user.get_username())
    return f"{machine} was asked: the answer stands in its row."


@machine_act
def machine_revoke(request: PageRequest, machine: Machine) -> str:
    revoke_machine(machine, actor=request.user.get_username(), force="force" in request.POST)
    return f"{machine} was revoked."


@room_act
def agent_command(request: PageRequest, membership: Membership, role: str, act: str) -> HttpResponse:
    """The command, and what becomes of it, stands in the agent's row, on every page."""
    if act not in AGENT_COMMANDS:
        raise NotFound(f"there is no act {act!r}: expected one of {', '.join(AGENT_COMMANDS)}")
    command = AGENT_COMMANDS[act](membership.room_id, role=role, actor=request.user.get_username())
    said = f"{command.get_act_display().capitalize()} of {role}: {command.outcome or command.state}."
    return done(request, membership, "" if request.htmx else said, anchor=f"agent-{role}")


@require_http_methods(["GET", "HEAD", "POST"])
@login_required
def agent_configuration(request: PageRequest, slug: str, role: str) -> HttpResponse:
    return (save_configuration if request.method == "POST" else show_configuration)(request, slug, role=role)


@room_page
def show_configuration(request: PageRequest, membership: Membership, role: str) -> HttpResponse:
    """The form, for the machine that is chosen in it."""
    if membership.role != MemberRole.OWNER:
        raise PermissionDenied("Only an owner of the room can configure its agents.")
    form = ConfigurationForm.read(find_agent(membership, role), user=request.user, chosen=request.GET)
    template = "machines/_configuration.html" if request.htmx else "machines/configuration.html"
    return render(request, template, {"room": membership.room, "form": form})


def save_configuration(request: PageRequest, slug: str, role: str) -> HttpResponse:
    membership = find_membership(request, slug)
    try:
        require_owner(membership)
        agent = move_agent(membership.room_id, role=role, user=request.user, **given_configuration(request.POST))
    except ChatroomError as error:
        return refused(request, membership, error)
    return done(request, membership, say_where(agent), anchor=f"agent-{role}")


def say_where(agent: Agent) -> str:
    home = Placement.objects.select_related("machine").filter(agent=agent).first()
    if home is not None and home.moving is not None:
        return f"{agent.role} runs on {home.machine}: it is stopped first, then changed."
    return f"Saved: {agent.role} " + (f"lives on {home.machine}." if home else "is started by a person.")


@require_safe
@room_page
def agent_log(request: PageRequest, membership: Membership, role: str) -> HttpResponse:
    """The newest output of the agent's newest runs, for a page of its own."""
    agent = find_agent(membership, role)
    context: dict[str, Any] = {"room": membership.room, "agent": agent, "tails": read_tails(agent)}
    return render(request, "machines/log.html", context)
