"""The sweep's steps about agents and what they hold: one row per transaction, under the room's lock, where the condition is repeated."""

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, QuerySet
from django.utils.timezone import now

from agents import leases, signals
from agents.models import Agent, AgentKind, AgentStatus, Claim, Incarnation, Outcome
from agents.models.agent import LIVE, AgentQuerySet
from agents.services.claims import agent_locked, announce_pending, lock_agent, release_claim, release_open_claim
from chatroom import notices
from chatroom.events import move
from chatroom.models import Pulse, Room, Task, TaskStatus
from chatroom.models.task import patience_of
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.services.tasks import lock_task
from chatroom.sweep import AHEAD, BATCH, each_due, is_quiet, keys_of, step

LOOK_AGAIN = timedelta(minutes=1)


@step
def give_back_missed_time() -> int:
    """An outage of ours does not count, nor does a clock set forward. Only working custom agents call less often than a quiet time."""
    with transaction.atomic():
        pulse = PULSE_AFTER_OUTAGE.first(pulse=1)
        if pulse is None:
            return 0
        missed, pulse.missed_seconds = timedelta(seconds=pulse.missed_seconds), 0
        pulse.save()
        working = Agent.objects.filter(status=AgentStatus.WORKING, kind=AgentKind.CUSTOM).select_for_update(of=("self",)).order_by("pk")
        return Agent.objects.filter(pk__in=working.values("pk")).update(lease_expires_at=F("lease_expires_at") + missed)


PULSE_AFTER_OUTAGE = Prepared[Pulse](lambda pulse: Pulse.objects.filter(pk=pulse, missed_seconds__gt=0).select_for_update())


@step
def cut_long_leases() -> int:
    """A lease further ahead than its lifetime was given before the clock was set back."""
    cut = 0
    for status in LIVE:
        for kind in AgentKind.values:
            limit = leases.lease(leases.longest_lease(status, kind))
            # A second of tolerance: the lease may have been given by another process in this very moment.
            beyond = {"status": status, "kind": kind, "time": limit + timedelta(seconds=1)}
            if TOO_FAR.exists(**beyond):
                cut += cut_leases(too_far(**beyond), limit)
    return cut


def too_far(status: Any, kind: Any, time: Any) -> AgentQuerySet:
    return Agent.objects.filter(status=status, kind=kind, lease_expires_at__gt=time)


TOO_FAR = Prepared[Agent](lambda status, kind, time: too_far(status, kind, time).order_by("lease_expires_at").values("pk")[:1])


def cut_leases(agents: AgentQuerySet, limit: datetime) -> int:
    """Locked in one order, and past whoever is busy: several rows in one statement must not deadlock with those who hold a room."""
    with transaction.atomic():
        ids = list(agents.select_for_update(skip_locked=True, of=("self",)).order_by("pk").values_list("pk", flat=True)[:BATCH])
        return agents.filter(pk__in=ids).update(lease_expires_at=limit) if ids else 0


@step
def expire_leases() -> int:
    """Whoever has not been heard of for a lease is dead; what it held is free again."""
    if is_quiet():
        return 0
    return each_due(partial(expired, now()), expire_lease)


def expired(time: datetime) -> list[tuple[int, int]]:
    return [key for status in LIVE for kind in AgentKind.values for key in EXPIRED.plain_rows(status=status, kind=kind, time=time)]


EXPIRED = Prepared[Agent](lambda status, kind, time: keys_of(Agent.objects.lease_expired(status, kind, time)))


def expire_lease(room_id: int, agent_id: int) -> bool:
    with agent_locked(room_id, agent_id) as (room, agent):
        if not agent.is_live or agent.lease_expires_at is None or agent.lease_expires_at >= now() or is_quiet(look_again_after=1):
            return False
        seen = f"last heard of at {agent.last_seen_at:%H:%M:%S} UTC" if agent.last_seen_at else "never heard of"
        reason = f"its lease ran out: {seen}"
        task = release_open_claim(agent, outcome=Outcome.LEASE_EXPIRED, actor="sweep", reason=f"{agent.role} is dead: {reason}")
        move(agent, "heartbeat_expired", actor="sweep", reason=reason, error_message=reason)
        if task is not None and task.status == TaskStatus.PENDING and agent.is_custom:
            tell_that_it_waits(room, agent, task)
        signals.agent_lost.send(Agent, agent=agent)
        announce_pending(task, agent=agent)
        return True


@step
def look_sooner() -> int:
    """A look planned further ahead than anybody is ever given was planned before the clock was set back."""
    sooner = 0
    for status in (TaskStatus.PENDING, TaskStatus.ACKNOWLEDGED):
        latest = now() + max(timedelta(seconds=patience_of(status) or 0), LOOK_AGAIN)
        if PLANNED_LATER.exists(status=status, time=latest + AHEAD):
            sooner += bring_forward(planned_later(status, latest + AHEAD), latest)
    return sooner


def planned_later(status: Any, time: Any) -> QuerySet[Task]:
    return Task.objects.filter(status=status, look_at__gt=time)


PLANNED_LATER = Prepared[Task](lambda status, time: planned_later(status, time).order_by("look_at").values("pk")[:1])


def bring_forward(tasks: QuerySet[Task], latest: datetime) -> int:
    """Past whoever is busy, as `cut_leases`; a task that moves on meanwhile has planned its own look."""
    with transaction.atomic():
        free = tasks.select_for_update(skip_locked=True, of=("self",)).order_by("look_at")
        ids = list(free.values_list("pk", flat=True)[:BATCH])
        return tasks.filter(pk__in=ids).update(look_at=latest) if ids else 0


@step
def look_at_tasks() -> int:
    """Pending or acknowledged for long. Each is planned anew when its status changes, so only what is due is read (`Task.plan_look`)."""
    if is_quiet():
        return 0
    return each_due(partial(TO_LOOK_AT.plain_rows, time=now()), look_at_task)


TO_LOOK_AT = Prepared[Task](lambda time: keys_of(Task.objects.filter(look_at__lt=time).order_by("look_at")))


def look_at_task(room_id: int, task_id: int) -> bool:
    with room_locked(room_id) as room:
        task = lock_task(room, task_id)
        if task.look_at is None or task.look_at >= now():
            return False
        is_done = tell_about_waiting_task(room, task) if task.status == TaskStatus.PENDING else recover_stuck(task)
        if not is_done:
            Task.objects.filter(pk=task_id).update(look_at=now() + LOOK_AGAIN)
        return is_done


def recover_stuck(task: Task) -> bool:
    """Nobody alive holds it. Whoever dies releases in the same transaction, so this mends only what a fault left."""
    claim = Claim.objects.open().filter(task=task).select_related("agent").first()
    if not task.is_held or (claim is not None and claim.agent.is_live):
        return False
    if claim is not None:
        task = release_claim(claim, outcome=Outcome.LEASE_EXPIRED, actor="sweep", reason="its holder is gone")
    else:
        move(task, "recover_stuck_acknowledged", actor="sweep", reason="nobody holds it")
    announce_pending(task)
    return True


def tell_about_waiting_task(room: Room, task: Task) -> bool:
    """The agent is one that only a person can start: people are told, once per episode, and the sweep need not look again."""
    agent = lock_agent(room.pk, role=task.assigned_role)
    if agent.is_live or not agent.is_custom:
        return False
    Task.objects.filter(pk=task.pk).update(look_at=None)
    return tell_that_it_waits(room, agent, task)


def tell_that_it_waits(room: Room, agent: Agent, task: Task) -> bool:
    waited = int((now() - task.status_since).total_seconds() // 60)
    since = f"has been waiting for {agent.role} for {waited} min" if waited else f"is waiting for {agent.role} again"
    why = f"{agent.get_status_display()} ({agent.error_message})" if agent.error_message else agent.get_status_display()
    text = f"Task {task.pk} {since}. {agent.role} is {why}, and a custom agent: somebody has to start its wait_for_task command."
    return notices.tell(room, f"task-waiting:{task.pk}:{task.status_since.isoformat()}", text=text, task=task)


@step
def clean_up_dead_custom_agents() -> int:
    """Dead for a day, and nobody misses it: grey instead of red. The history keeps why."""
    return each_due(partial(LONG_DEAD.plain_rows, oldest=now() - timedelta(seconds=settings.CUSTOM_CLEANUP_AFTER)), clean_up)


def long_dead(oldest: Any) -> AgentQuerySet:
    return Agent.objects.filter(status=AgentStatus.DEAD, kind=AgentKind.CUSTOM, status_since__lt=oldest).order_by("status_since")


LONG_DEAD = Prepared[Agent](lambda oldest: keys_of(long_dead(oldest)))


def clean_up(room_id: int, agent_id: int) -> bool:
    with agent_locked(room_id, agent_id) as (_, agent):
        if agent.status != AgentStatus.DEAD:
            return False
        Incarnation.objects.filter(agent=agent, ended_at=None).update(ended_at=now(), ended_by="dead for a day")
        move(agent, "cleanup", actor="sweep", reason="dead for a day")
        return True


@step
def forget_old_incarnations() -> int:
    oldest = now() - timedelta(seconds=settings.EVENT_RETENTION)
    ids = [pk for (pk,) in OLD_INCARNATIONS.plain_rows(oldest=oldest)]
    return Incarnation.objects.filter(pk__in=ids).delete()[0] if ids else 0


OLD_INCARNATIONS = Prepared[Incarnation](lambda oldest: Incarnation.objects.filter(ended_at__lt=oldest).values_list("pk")[:BATCH])
