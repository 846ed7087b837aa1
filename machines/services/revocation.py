"""A machine is taken out of service: at once, whatever lives there. A stolen laptop is not asked."""

from django.db.models import Q
from django.utils.timezone import now

from agents.models import AgentStatus
from agents.services.claims import lock_agent
from chatroom import notices
from chatroom.errors import WrongState
from chatroom.events import move, record_event
from chatroom.models import Room, TokenKind
from chatroom.services.tokens import revoke_tokens
from chatroom.unit import one_unit
from machines import hints
from machines.models import Command, Machine, MachineStatus, Placement, Run

from .connection import machine_locked
from .desire import revocation_episode
from .moving import continue_move
from .runs import fail_lost_run

NAMED = 5


class AgentsLiveThere(WrongState):
    """What a revoked machine carries is lost with it: whoever revokes it has to say that they know."""

    code = "agents_live_there"


def revoke_machine(machine: Machine, *, actor: str, force: bool = False) -> Machine:
    """Its token and those of its runs count no more, and its daemon is told so at once. With agents on it only by force."""
    with machine_locked(machine.pk) as locked, one_unit() as unit:
        if locked.revoked_at is not None:
            return locked
        # Who presses start on an agent that was placed there in this very instant, in a room that is not locked, is told of it then.
        there = Placement.objects.filter(machine=locked, agent__room__in=unit.rooms)
        placed = list(there.select_related("agent__room").order_by("agent_id"))
        if placed and not force:
            raise AgentsLiveThere(
                f"{locked} still has agents ({names_of(placed)}): move them to another machine first, or force it: "
                "their processes are given up, and their tasks are free again"
            )
        reason = f"{locked} was revoked by {actor}"
        end_voice(locked, actor=actor, reason=reason)
        for room in sorted({placement.agent.room for placement in placed}, key=lambda room: room.pk):
            tell_room(locked, room, [found for found in placed if found.agent.room_id == room.pk], actor=actor, reason=reason)
        for placement in placed:
            give_up_agent(placement, actor=actor, reason=reason)
        for command in Command.objects.select_for_update(of=("self",)).in_flight().filter(machine=locked).order_by("pk"):
            move(command, "fail", actor=actor, reason=reason, outcome=reason)
    return locked


def names_of(placed: list[Placement]) -> str:
    named = ", ".join(f"{placement.agent.role} of {placement.agent.room}" for placement in placed[:NAMED])
    return f"{named} and {len(placed) - NAMED} more" if len(placed) > NAMED else named


def end_voice(machine: Machine, *, actor: str, reason: str) -> None:
    """From here on nothing that comes from there is believed."""
    machine.revoked_at = now()
    if machine.status != MachineStatus.DISCONNECTED:
        move(machine, "disconnect", actor=actor, reason=reason)
    machine.save()
    revoke_tokens(Q(kind=TokenKind.MACHINE, subject_id=machine.pk))
    revoke_tokens(Q(kind=TokenKind.AGENT, subject_id__in=Run.objects.filter(machine=machine).values("pk")))
    record_event(machine, "revoke", actor=actor, room_id=None)
    hints.machine_changed(machine.pk)
    hints.fleet_changed(machine.owner_id)


def tell_room(machine: Machine, room: Room, placed: list[Placement], *, actor: str, reason: str) -> None:
    """A line by which open pages learn of it, and one word to the people."""
    record_event(room, "machine_revoke", actor=actor, room_id=room.pk, reason=reason, data={"machine": machine.pk})
    roles = ", ".join(placement.agent.role for placement in placed)
    told = f"{reason}. What lived there needs another machine, or a person who starts it: {roles}."
    notices.tell(room, revocation_episode(machine, room), text=told)


def give_up_agent(placement: Placement, *, actor: str, reason: str) -> None:
    """Its run is lost with its machine, its task is free. It stays configured, so that it can be moved."""
    for run_id in list(Run.objects.unfinished().filter(agent=placement.agent_id).values_list("pk", flat=True)):
        fail_lost_run(run_id, message=reason, may_wake=False)
    agent = lock_agent(placement.agent.room_id, pk=placement.agent_id)
    found = Placement.objects.select_for_update(of=("self",)).get(pk=placement.pk)
    continue_move(found)
    if agent.status == AgentStatus.RESTARTING:
        found.forget_wait()
        found.save()
        move(agent, "restart_expired", actor=actor, reason=reason, error_message=reason)
