"""The sweep's steps about machines and their agents. One row per transaction, under the room's lock, with the condition repeated there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.conf import settings
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.utils.timezone import now

from agents.models import Agent, AgentKind, AgentStatus
from chatroom.errors import Superseded
from chatroom.events import move
from chatroom.models import Notice, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.sweep import BATCH, each_due, is_past, is_quiet, keys_of, past, step, try_one
from machines.models import Command, CommandState, Desired, Machine, MachineStatus, Placement, RunLog
from machines.models.command import SHORT_LIVED, STARTS
from machines.models.run import UNFINISHED
from machines.receivers import wake_or_tell
from machines.services.connection import note_silence, oldest_sign, silent_machines
from machines.services.desire import finish_commands, finish_one, lock_placement

RESTART_TOLERANCE = 30
SHORT_LIFETIME = 10
START_LIFETIME = 3600


@step
def disconnect_silent_machines() -> int:
    """For machines whose web process died with their socket: the one that holds a socket decides by itself, and sooner."""
    if is_quiet():
        return 0
    due = SILENT.plain_rows(oldest=oldest_sign())
    return sum(try_one(disconnect_machine, 0, pk) for (pk,) in due)


SILENT = Prepared[Machine](
    lambda oldest: Machine.objects.filter(silent_machines(oldest)).order_by("last_seen_at").values_list("pk")[:BATCH]
)


def disconnect_machine(_: int, machine_id: int) -> bool:
    machine = Machine.objects.filter(silent_machines(oldest_sign()), pk=machine_id).first()
    if machine is None:
        return False
    reason = f"no sign of life for {settings.DAEMON_TTL:g} s"
    try:
        return note_silence(machine_id, connection=machine.connection, trigger="disconnect", reason=reason)
    except Superseded:
        return False  # it came back meanwhile


@step
def expire_restarts() -> int:
    """Restarting for longer than any attempt may take, and no word since."""
    if is_quiet():
        return 0
    return each_due(partial(OVERDUE.plain_rows, oldest=oldest_restart()), expire_restart)


def oldest_restart() -> datetime:
    return now() - timedelta(seconds=settings.RESTART_DEADLINE + RESTART_TOLERANCE)


def overdue_restarts(oldest: Any) -> QuerySet[Agent]:
    """The latest of the trigger, a report about its runs, and the end of a wait that its daemon announced is long ago."""
    no_word = Q(placement__restart_noted_at=None) | Q(placement__restart_noted_at__lt=oldest)
    return Agent.objects.filter(no_word, status=AgentStatus.RESTARTING, status_since__lt=oldest)


OVERDUE = Prepared[Agent](lambda oldest: keys_of(overdue_restarts(oldest).order_by("status_since")))


def expire_restart(room_id: int, agent_id: int) -> bool:
    """A start that waits for its machine stays in flight: it happens when the machine is back, within the hour."""
    with room_locked(room_id) as room:
        agent = overdue_restarts(oldest_restart()).filter(pk=agent_id).first()
        if agent is None:
            return False
        locked = lock_placement(room, agent.role)
        machine = locked.placement.machine
        reason = "its start was never confirmed" if machine.is_connected else f"its machine {machine} is away"
        locked.placement.forget_wait()
        locked.placement.save()
        move(locked.agent, "restart_expired", actor="sweep", reason=reason, error_message=reason)
        if machine.is_connected:
            finish_commands(locked.agent, STARTS, "fail", outcome=reason)
        return True


@step
def expire_commands() -> int:
    """ping and status are worth nothing later; a start that waited for an hour asks the person again."""
    expired = each_command(QUESTIONS.rows(oldest=now() - timedelta(seconds=SHORT_LIFETIME)), expire_question)
    return expired if is_quiet() else expired + each_command(OLD_STARTS.rows(oldest=oldest_start()), expire_start)


def each_command(due: Iterable[Command], act: Callable[[int, int], bool]) -> int:
    return sum(try_one(act, command.room_id or 0, command.pk) for command in list(due))


QUESTIONS = Prepared[Command](lambda oldest: Command.objects.in_flight().filter(act__in=SHORT_LIVED, created_at__lt=oldest))


def expire_question(_: int, command_id: int) -> bool:
    finish_one(Command.objects.get(pk=command_id), "expire", actor="sweep", outcome=f"no answer within {SHORT_LIFETIME} s")
    return True


def oldest_start() -> datetime:
    return now() - timedelta(seconds=START_LIFETIME)


def old_starts(oldest: Any) -> QuerySet[Command]:
    """Nobody could carry them out: never sent, or sent to a machine that has been away since."""
    unheard = Q(state=CommandState.PENDING) | Q(machine__status=MachineStatus.DISCONNECTED)
    return Command.objects.in_flight().starts().filter(unheard, created_at__lt=oldest).select_related("agent")


OLD_STARTS = Prepared[Command](old_starts)


def expire_start(room_id: int, command_id: int) -> bool:
    with room_locked(room_id) as room:
        command = old_starts(oldest_start()).filter(pk=command_id).first()
        if command is None:
            return False
        placement = lock_placement(room, command.role).placement
        outcome = f"{placement.machine} was away for an hour: start it again if it is still wanted"
        move(command, "expire", actor="sweep", reason=outcome, outcome=outcome)
        placement.desired_state, placement.generation = Desired.ON_DEMAND, placement.generation + 1
        placement.save()
        return True


@step
def wake_agents() -> int:
    """Work waits, its remote agent is away: the condition is checked on every change, and here for what was missed."""
    if is_quiet():
        return 0
    return each_due(partial(MISSED.plain_rows, tomorrow=now() + timedelta(days=1), **past(settings.SWEEP_INTERVAL)), wake_for)


def missed_work(tomorrow: Any, oldest: Any, ahead: Any) -> QuerySet[Task]:
    # Whatever waits is planned to be looked at, sooner or later: that index holds nothing else (`Task.plan_look`).
    waiting = Task.objects.filter(is_past("status_since", oldest=oldest, ahead=ahead), status=TaskStatus.PENDING, look_at__lt=tomorrow)
    untold = ~Exists(Notice.objects.filter(task=OuterRef("pk"), created_at__gte=OuterRef("status_since")))
    return waiting.filter(Exists(startable()) | Exists(unstartable()) & untold).order_by("look_at")


MISSED = Prepared[Task](lambda tomorrow, oldest, ahead: keys_of(missed_work(tomorrow, oldest, ahead)))


def away() -> QuerySet[Placement]:
    agents = Q(agent__room=OuterRef("room"), agent__role=OuterRef("assigned_role"), agent__kind=AgentKind.REMOTE)
    return Placement.objects.filter(agents, agent__status__in=[AgentStatus.OFFLINE, AgentStatus.DEAD])


def startable() -> QuerySet[Placement]:
    """Nobody and nothing speaks against a start: `why_not_wakeable`, as a query."""
    in_flight = Command.objects.in_flight().starts().filter(agent=OuterRef("agent"))
    frozen = Q(current_run__is_frozen=True, current_run__state__in=UNFINISHED)
    there = away().exclude(machine__status=MachineStatus.DISCONNECTED).exclude(desired_state=Desired.STOPPED).exclude(frozen)
    return there.exclude(exhausted_generation__isnull=False, exhausted_generation=F("generation")).exclude(Exists(in_flight))


def unstartable() -> QuerySet[Placement]:
    """Stopped, or its machine is away: people are told. (Of the frozen, the exhausted and the revoked ones they know already.)"""
    found = away().filter(Q(desired_state=Desired.STOPPED) | Q(machine__status=MachineStatus.DISCONNECTED))
    return found.filter(machine__revoked_at=None)


def wake_for(room_id: int, task_id: int) -> bool:
    with room_locked(room_id) as room:
        task = Task.objects.filter(pk=task_id, status=TaskStatus.PENDING).first()
        return task is not None and wake_or_tell(lock_placement(room, task.assigned_role), task)


@dataclass
class Walk:
    """How far a round through a table has come."""

    after: int = 0


LOGS = Walk()


@step
def forget_old_logs() -> int:
    """Some at a time, round and round: that a run is old is no news of its log, for most old runs have none any more."""
    oldest = now() - timedelta(seconds=settings.LOG_RETENTION)
    page = list(RunLog.objects.filter(pk__gt=LOGS.after).order_by("pk").values_list("pk", "run__ended_at")[:BATCH])
    LOGS.after = page[-1][0] if len(page) == BATCH else 0
    old = [pk for pk, ended_at in page if ended_at is not None and ended_at < oldest]
    return RunLog.objects.filter(pk__in=old).delete()[0] if old else 0
