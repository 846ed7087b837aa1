"""A run is opened by the server, just before its daemon validates: token and configuration are fresh, and a stop meanwhile wins."""

from typing import Any

from django.utils.timezone import now

from agents.models import AgentStatus
from agents.services.prompts import build_prompt
from chatroom.errors import ChatroomError, Invalid
from chatroom.events import move, record_event
from chatroom.models import Token, TokenKind
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from machines.models import Desired, Machine, Placement, Run

from .desire import Locked, find_placed, lock_placement


class NotWanted(ChatroomError):
    """No process of this agent is wanted now."""

    code, status = "not_wanted", 409


class Busy(ChatroomError):
    """Another run of this agent has not ended yet."""

    code, status = "busy", 409


def open_run(machine: Machine, *, agent_id: int, generation: int, attempt: int, request: str, server_url: str) -> dict[str, Any]:
    """The grant of a new run; of the same run, with a fresh token, when the same request comes again because its answer was lost."""
    if not request:
        raise Invalid("open_run without a request: expected the daemon's own id of its wish")
    placed = find_placed(machine, agent_id)
    if placed is None:
        raise NotWanted(f"agent {agent_id} does not live on {machine}")
    with room_locked(placed.room_id) as room:
        locked = lock_placement(room, placed.role)
        run = RUN_OF_REQUEST.first(agent=locked.agent.pk, request=request)
        if run is None:
            require_wanted(locked, machine, generation)
            run = create_run(locked, attempt=attempt, request=request)
        elif run.is_finished:
            raise NotWanted(f"run {run.pk} of this request has ended already: ask again with a new one")
        Token.objects.filter(kind=TokenKind.AGENT, subject_id=run.pk).delete()
        _, secret = Token.objects.issue(kind=TokenKind.AGENT, name=f"run {run.pk}", room=room, role=locked.agent.role, subject_id=run.pk)
        return grant_of(run, locked, secret=secret, server_url=server_url)


RUN_OF_REQUEST = Prepared[Run](lambda agent, request: Run.objects.filter(agent=agent, request=request))


def require_wanted(locked: Locked, machine: Machine, generation: int) -> None:
    placement, role = locked.placement, locked.agent.role
    if placement.machine_id != machine.pk:
        raise NotWanted(f"{role} lives on {placement.machine} now")
    if placement.is_stopped:
        raise NotWanted(f"{role} was stopped by {placement.desired_by}")
    if placement.desired_state != Desired.RUNNING:
        raise NotWanted(f"{role} is not wanted until there is work")
    if placement.generation != generation:
        raise NotWanted(f"generation {generation} of {role} is outdated: {placement.generation} is wanted")
    if placement.is_exhausted:
        raise NotWanted(f"{role} is unrecoverable until a person restarts it")
    if living := UNFINISHED_OF.first(agent=locked.agent.pk):
        raise Busy(f"run {living.pk} of {role} has not ended yet")


UNFINISHED_OF = Prepared[Run](lambda agent: Run.objects.unfinished().filter(agent=agent))


def create_run(locked: Locked, *, attempt: int, request: str) -> Run:
    placement, agent = locked.placement, locked.agent
    run = Run.objects.create(
        agent=agent,
        machine=placement.machine,
        generation=placement.generation,
        attempt=attempt,
        request=request,
        harness=placement.harness,
        model=placement.model,
        directory=placement.directory,
    )
    record_event(run, "create", actor="daemon", room_id=agent.room_id, to_state=run.state, role=agent.role, data={"attempt": attempt})
    placement.current_run, placement.restart_noted_at, placement.restart_at = run, now(), None
    placement.save()
    if agent.status in (AgentStatus.OFFLINE, AgentStatus.DEAD):
        move(agent, "restart_initiated", actor="daemon", reason=f"run {run.pk} begins")
    return run


def grant_of(run: Run, locked: Locked, *, secret: str, server_url: str) -> dict[str, Any]:
    return {
        "run": run.pk,
        "agent": run.agent_id,
        "generation": run.generation,
        "attempt": run.attempt,
        "token": secret,
        "room": locked.room.slug,
        "role": run.agent.role,
        "mode": locked.placement.mode,
        "harness": run.harness,
        "model": run.model,
        "directory": run.directory,
        "prompt": build_prompt(run.agent, server_url=server_url),
    }


def look_at_join(machine: Machine, run_id: int) -> dict[str, Any]:
    """Asked before a run is ended because it did not join in time."""
    run = Run.objects.filter(pk=run_id, machine=machine).first()
    is_current = run is not None and Placement.objects.filter(agent=run.agent_id, current_run=run).exists()
    return {"run": run_id, "joined": bool(run and run.joined_at), "current": is_current}
