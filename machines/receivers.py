"""What the apps below tell: a run's program joins, work waits for a remote agent, an agent was lost."""

from typing import Any

from django.dispatch import receiver

from agents import signals as agent_signals
from agents.models import Agent, AgentKind, Outcome
from chatroom import notices
from chatroom import signals as room_signals
from chatroom.errors import RoleNotYours, WrongState
from chatroom.models import Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.principals import Principal
from machines.models import Placement, Run
from machines.services.desire import Hindrance, Locked, abort_run, is_coming, lock_placement, wake_locked, why_not_wakeable
from machines.services.runs import note_join, require_current_run


@receiver(agent_signals.join_requested)
def admit_current_run(agent: Agent, principal: Principal, **_: Any) -> None:
    """A remote role is joined only with its current run's token."""
    try:
        require_current_run(agent, principal.subject_id)
    except WrongState as error:
        raise RoleNotYours(error.message) from None


@receiver(agent_signals.agent_joined)
def complete_start(agent: Agent, principal: Principal, **_: Any) -> None:
    if principal.subject_id is not None and not agent.is_custom:
        note_join(agent, principal.subject_id)


@receiver(agent_signals.agent_sought)
def name_machine(agent: Agent, **_: Any) -> str | None:
    return Placement.objects.filter(agent=agent).values_list("machine__name", flat=True).first()


@receiver(room_signals.task_pending)
def wake_for_task(task: Task, agent: Agent | None = None, **_: Any) -> None:
    if task.status != TaskStatus.PENDING:
        return  # an agent that waited here has it already
    agent = agent or AGENT_OF.first(room=task.room_id, role=task.assigned_role)
    if agent is not None and agent.kind == AgentKind.REMOTE and not agent.is_live:
        wake_or_tell(lock_placement(task.room, agent.role), task)


AGENT_OF = Prepared[Agent](lambda room, role: Agent.objects.filter(room=room, role=role))


@receiver(agent_signals.agent_lost)
def wake_lost_agent(agent: Agent, **_: Any) -> None:
    if agent.kind != AgentKind.REMOTE:
        return
    task = Task.objects.filter(room_id=agent.room_id, assigned_role=agent.role, status=TaskStatus.PENDING).first()
    if task is not None:
        wake_or_tell(lock_placement(agent.room, agent.role), task)


@receiver(room_signals.task_left_holder)
def abort_in_fail_fast_room(task: Task, outcome: str, actor: str, **_: Any) -> None:
    """A task failed in a fail-fast room: whoever works on another one is stopped at once, not at its next call."""
    agent = Agent.objects.filter(room_id=task.room_id, role=task.assigned_role, kind=AgentKind.REMOTE).first()
    if outcome == Outcome.ABORTED and agent is not None and Run.objects.unfinished().filter(agent=agent).exists():
        abort_run(task.room_id, role=agent.role, actor=actor)


def wake_or_tell(locked: Locked, task: Task) -> bool:
    """One start; or people are told why there is none, once per episode. The task stays pending. True if something was done."""
    if wake_locked(locked) is not None:
        return True
    hindrance = None if is_coming(locked) else why_not_wakeable(locked)
    return hindrance is not None and tell_why_waiting(locked, task, hindrance)


def tell_why_waiting(locked: Locked, task: Task, hindrance: Hindrance) -> bool:
    text = f"Task {task.pk} waits for {locked.agent.role}, which can't be started by itself: {hindrance.reason}."
    episode = hindrance.episode or f"task-waiting:{task.pk}:{task.status_since.isoformat()}"
    return notices.tell(locked.room, episode, text=text, task=task)
