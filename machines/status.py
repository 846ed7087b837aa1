"""The machines' part of a room's JSON. It is loaded with the API, after the agents' part, to which it adds."""

from typing import Any

from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus
from chatroom.models import Room
from chatroom.status import contribute
from machines.models import Command, Machine, Placement


@contribute
def add_machines(room: Room, status: dict[str, Any]) -> None:
    placements = {
        placement.agent.role: placement
        for placement in Placement.objects.filter(agent__room=room).select_related("agent", "machine", "current_run")
    }
    for agent in status["agents"]:
        if placement := placements.get(agent["role"]):
            agent.update(describe_placement(placement))
    machines = Machine.objects.filter(pk__in={placement.machine_id for placement in placements.values()})
    status["machines"] = [{"name": machine.name, "status": machine.status, "last_seen_at": machine.last_seen_at} for machine in machines]


def describe_placement(placement: Placement) -> dict[str, Any]:
    run = placement.current_run
    return {
        **describe_doubt(placement),
        "machine": placement.machine.name,
        "harness": placement.harness,
        "model": placement.model,
        "directory": placement.directory,
        "mode": placement.mode,
        "desired_state": placement.desired_state,
        "run": {"id": run.pk, "state": run.state, "pid": run.pid} if run else None,
    }


def describe_doubt(placement: Placement) -> dict[str, Any]:
    """While its machine is away an agent keeps its status, and nobody can say whether that is still true."""
    machine, agent = placement.machine, placement.agent
    if machine.is_connected or not (agent.is_live or agent.status == AgentStatus.RESTARTING):
        return {}
    return {"unconfirmed_since": machine.status_since, "unconfirmed_why": f"{machine} is away"}


def describe_agent(agent: Agent) -> dict[str, Any]:
    """What it is and where it lives, as it was configured."""
    placement = Placement.objects.filter(agent=agent).select_related("machine").first()
    names = ["harness", "model", "directory", "mode", "desired_state"]
    return {
        "role": agent.role,
        "kind": agent.kind,
        "status": agent.status,
        "machine": placement.machine.name if placement else None,
        **{name: getattr(placement, name, None) for name in names},
    }


def describe_machine(machine: Machine, *, reader: User) -> dict[str, Any]:
    """As this person may see it: agents of rooms they are not in are none of their business."""
    placements = machine.placements.filter(agent__room__membership__user=reader).select_related("agent__room").order_by("agent_id")
    return {
        "id": machine.pk,
        "name": machine.name,
        "owner": machine.owner.get_username(),
        "status": machine.status,
        "last_seen_at": machine.last_seen_at,
        "platform": machine.platform,
        "version": machine.version,
        "slots": machine.slots,
        "harnesses": machine.harnesses,
        "allow_dirs": machine.allow_dirs,
        "agents": [
            {"room": placement.agent.room.slug, "role": placement.agent.role, "status": placement.agent.status} for placement in placements
        ],
    }


def describe_command(command: Command) -> dict[str, Any]:
    return {
        "command": command.pk,
        "act": command.act,
        "state": command.state,
        "machine": command.machine.name,
        "role": command.role or None,
        "generation": command.generation,
        "outcome": command.outcome,
        "answer": command.answer,
        "actor": command.actor,
        "created_at": command.created_at,
        "ended_at": command.ended_at,
    }
