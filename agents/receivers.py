"""What the rooms app tells: a room was made, a task can be claimed, a task was taken from its holder."""

from functools import partial
from typing import Any

from django.db import transaction
from django.dispatch import receiver
from django_fsm.signals import post_transition

from agents import leases, waiters
from agents.models import Agent, AgentStatus, Claim
from chatroom import signals
from chatroom.events import move
from chatroom.models import Room, Task

from .services.claims import claim_for_local_waiter, end_claim, lock_agent


@receiver(signals.room_created)
def create_agents(room: Room, **_: Any) -> None:
    Agent.objects.bulk_create([Agent(room=room, role=role) for role in room.team])


@receiver(signals.task_pending)
def offer_at_once(task: Task, **_: Any) -> None:
    claim_for_local_waiter(task)


@receiver(post_transition, sender=Agent)
def look_after_waiters(instance: Agent, name: str, **_: Any) -> None:
    """Somebody else may speak for the agent now: whoever waits here learns it at once."""
    if name not in {"claim_task", "task_complete"} and waiters.are_in(instance.room_id):
        transaction.on_commit(partial(waiters.wake_from_thread, instance.room_id))


@receiver(signals.task_left_holder)
def free_holder(task: Task, outcome: str, actor: str, reason: str, **_: Any) -> None:
    """The claim ends; the agent has nothing to do, and learns of it at its next call."""
    claim = Claim.objects.select_for_update(of=("self",)).filter(task=task).open().first()
    if claim is None:
        return
    end_claim(claim, outcome=outcome, actor=actor)
    agent = lock_agent(task.room_id, pk=claim.agent_id)
    if agent.status == AgentStatus.WORKING:
        move(agent, "task_released", actor=actor, reason=reason, lease=leases.between_tasks_lease(agent))
