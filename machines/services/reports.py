"""What a daemon reports. Each report is applied once, in one transaction with everything that follows from it; a repeat changes nothing."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import DataError, IntegrityError
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils.timezone import now

from agents import leases
from agents.models import Agent
from agents.models.agent import LIVE, AgentQuerySet
from agents.services.claims import lock_agent
from chatroom import notices
from chatroom.errors import ChatroomError
from chatroom.events import move, record_event
from chatroom.models import Event
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.unit import one_unit
from machines.models import Act, Command, Machine, Placement, Run, RunState
from machines.models.run import VERDICTS
from machines.untrusted import clean_line, clean_text, read_id

from .desire import Locked, confirm_stop, find_placed, finish_commands, finish_one, freezing_episode, lock_placement
from .moving import continue_move
from .runs import fail_lost_run, finish_run, lock_run, note_pid, note_progress, settle_agent, walk

KEPT_LINES = 20
LONGEST_AGE = 30 * 86400.0
ROUGHLY = timedelta(seconds=1)  # what a report may take to come
MALFORMED = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError)


class Rejected(Exception):
    """The report can't be applied any more; it leaves the outbox all the same."""


def receive_report(machine: Machine, report: dict[str, Any]) -> str | None:
    """Applies it. If it can't be applied, that is kept as an event, and the reason is the answer: it never comes again."""
    try:
        apply_report(machine, report)
    except (Rejected, ChatroomError, DataError, IntegrityError, *MALFORMED) as error:
        reason = str(error) if isinstance(error, Rejected | ChatroomError) else f"it can't be understood: {error!r}"
        keep_rejected(machine, report, reason=clean_text(reason))
        return clean_text(reason)
    return None


def keep_rejected(machine: Machine, report: dict[str, Any], *, reason: str) -> None:
    key, number = clean_line(report.get("key"), 200), read_id(report.get("run"))
    run = Run.objects.filter(pk=number, machine=machine).select_related("agent").first()
    subject, room_id, role = (run, run.agent.room_id, run.agent.role) if run else (machine, None, "")
    with one_unit() if room_id is None else room_locked(room_id):
        name = subject._meta.model_name or ""
        if not Event.objects.filter(subject=name, subject_id=subject.pk, trigger="reject_report", data__key=key).exists():
            data = {"key": key, "report": clean_line(report.get("report"))}
            record_event(subject, "reject_report", actor=machine.name, room_id=room_id, role=role, reason=reason, data=data)


def apply_report(machine: Machine, report: dict[str, Any]) -> None:
    """Raises Rejected, with the reason, when it has no meaning any more."""
    name = report.get("report")
    if name in COMMAND_REPORTS:
        apply_command_report(machine, report, trigger=COMMAND_REPORTS[name])
    elif name == "agent.stopped":
        apply_agent_stopped(machine, report)
    elif name in REPORTS:
        apply_run_report(machine, report)
    else:
        known = ", ".join([*REPORTS, *COMMAND_REPORTS, "agent.stopped"])
        raise Rejected(f"report {clean_line(name)!r}: expected one of {known}")


def apply_run_report(machine: Machine, report: dict[str, Any]) -> None:
    found = RUN_OF_MACHINE.first(run=read_id(report.get("run")), machine=machine.pk)
    if found is None:
        raise Rejected(f"run {clean_line(report.get('run'))} is not one of {machine}")
    with room_locked(found.agent.room_id) as room:
        run = lock_run(found.pk)
        run.agent = lock_agent(room.pk, pk=run.agent_id)
        REPORTS[report["report"]](run, report)


RUN_OF_MACHINE = Prepared[Run](lambda run, machine: Run.objects.filter(pk=run, machine=machine).select_related("agent"))


def refuse_if_lost(run: Run) -> None:
    """Of a run that has ended nothing can be new, unless the server gave it up without asking."""
    if run.is_finished and run.verdict == "lost":
        raise Rejected(f"run {run.pk} is {run.state} already: {run.error_message}")


def apply_step(run: Run, report: dict[str, Any], *, until: str) -> None:
    refuse_if_lost(run)
    if run.is_finished:
        return
    pid = read_id(report.get("pid")) or None
    if walk(run, until=until, pid=pid):
        note_progress(run)
    note_pid(run, pid)


def apply_aborting(run: Run, report: dict[str, Any]) -> None:
    refuse_if_lost(run)
    if run.is_finished or run.state == RunState.ABORTING:
        return
    run.asked = clean_line(report.get("asked"), 20)
    move(run, "abort", actor=run.machine.name, reason=clean_text(report.get("reason") or run.asked))
    note_progress(run)


def apply_exit(run: Run, report: dict[str, Any]) -> None:
    """The end of a process, and the daemon's decision what follows, in one transaction; the first final state stands."""
    how = (report.get("code"), report.get("signal"), clean_line(report.get("failure"), 20))
    if run.is_finished:
        if (run.exit_code, run.signal, run.failure) == how:
            return  # the same report again
        raise Rejected(f"run {run.pk} is {run.state} already: {run.error_message or 'as asked'}")
    decision = report.get("decision") or {}
    run.exit_code, run.signal, run.failure = how
    run.asked = clean_line(report.get("asked") or run.asked, 20)
    run.last_lines = [clean_text(line) for line in (report.get("lines") or [])[-KEPT_LINES:]]
    run.verdict = next((known for known in VERDICTS if known == decision.get("verdict")), "")
    message, has_run = clean_text(report.get("message")) or "ended", report["report"] == "run.exited"
    age = read_age(report)
    excuse_outdated(run, has_run=has_run, ended_at=now() - age)
    finish_run(run, message=message, has_run=has_run, age=age)
    settle_agent(run, decision, message=message)


def excuse_outdated(run: Run, *, has_run: bool, ended_at: datetime) -> None:
    """A run that a newer generation replaces ended as asked for: its program may have heard of it before its daemon did.

    Not one that had ended by then, of which we heard only now.
    """
    if run.verdict not in {"faulty", "transient"}:
        return
    newer = Placement.objects.filter(agent_id=run.agent_id, generation__gt=run.generation).first()
    if newer is None:
        return
    asked = Command.objects.filter(agent_id=run.agent_id, generation__gt=run.generation).order_by("created_at").first()
    if asked is not None and asked.created_at > ended_at + ROUGHLY:
        return
    run.verdict = "asked"
    if has_run and run.asked in {"", "deadline"}:
        run.asked = "stop" if newer.is_stopped else "restart"


def read_age(report: dict[str, Any]) -> timedelta:
    """How long ago it happened: a report may have waited for the server."""
    age = report.get("age")
    return timedelta(seconds=min(max(0.0, float(age)), LONGEST_AGE)) if isinstance(age, int | float) else timedelta()


def apply_stopped(run: Run, report: dict[str, Any]) -> None:
    """SIGSTOP: first a warning, once a stop."""
    if run.is_finished or run.stopped_at is not None or was_applied(run, report):
        return
    run.stopped_at = now()
    run.save()
    note_signal(run, report, "stopped", reason="its process is stopped (SIGSTOP)")


def apply_frozen(run: Run, report: dict[str, Any]) -> None:
    """Its lease ends now: the next sweep says dead. Nothing starts a second process beside a frozen one.

    Not of an agent that was heard of since: then the report is an old one, and the next will say that the process went on, or, with
    each new connection, that it is frozen still.
    """
    if run.is_finished or was_applied(run, report):
        return
    reason = "its process is frozen (SIGSTOP): SIGCONT, or a restart, helps"
    if not run.is_frozen:
        run.is_frozen, run.stopped_at = True, run.stopped_at or now()
        run.save()
        note_signal(run, report, "frozen", reason=reason)
    if run.agent.last_seen_at is not None and run.agent.last_seen_at > now() - read_age(report):
        return
    living_agent_of(run).update(lease_expires_at=now())
    notices.tell(run.agent.room, freezing_episode(run), text=f"{run.agent.role} on {run.machine.name}: {reason}.")


def living_agent_of(run: Run) -> AgentQuerySet:
    return Agent.objects.filter(pk=run.agent_id, status__in=LIVE, incarnation=run.incarnation)


def apply_continued(run: Run, report: dict[str, Any]) -> None:
    """If it counted as frozen and no sweep has looked yet, it lives on with the lease that a vouched agent has."""
    if run.is_finished or run.stopped_at is None or was_applied(run, report):
        return
    if run.is_frozen:
        lease = leases.lease(settings.HEARTBEAT_TTL) - read_age(report)
        living_agent_of(run).update(lease_expires_at=Greatest(F("lease_expires_at"), lease))
    run.stopped_at, run.is_frozen = None, False
    run.save()
    note_signal(run, report, "continued", reason="its process goes on")


def was_applied(run: Run, report: dict[str, Any]) -> bool:
    """These come in turns, so the state alone does not tell a repeat."""
    key = clean_line(report.get("key"), 200)
    return bool(key) and Event.objects.filter(subject="run", subject_id=run.pk, data__key=key).exists()


def note_signal(run: Run, report: dict[str, Any], trigger: str, *, reason: str) -> None:
    data = {"key": clean_line(report.get("key"), 200)}
    record_event(run, trigger, actor=run.machine.name, room_id=run.agent.room_id, role=run.agent.role, reason=reason, data=data)


def apply_agent_stopped(machine: Machine, report: dict[str, Any]) -> None:
    """No process of the agent is left. A start, or a restart, that was given meanwhile wins."""
    placed = find_placed(machine, read_id(report.get("agent")))
    if placed is None:
        raise Rejected(f"agent {clean_line(report.get('agent'))} does not live on {machine}")
    with room_locked(placed.room_id) as room:
        locked = lock_placement(room, placed.role)
        generation = int(report.get("generation") or 0)
        if locked.placement.machine_id == machine.pk and generation >= locked.placement.generation:
            give_up_unknown(locked, generation)
            take_offline(lock_placement(room, placed.role), actor=machine.name)


def give_up_unknown(locked: Locked, generation: int) -> None:
    """A run that was opened, but whose grant never reached the daemon: it says that it has no process."""
    unknown = Run.objects.unfinished().filter(agent=locked.agent, generation__lte=generation)
    for run_id in list(unknown.values_list("pk", flat=True)):
        fail_lost_run(run_id, message="its machine has no process of it", may_wake=False)


def take_offline(locked: Locked, *, actor: str) -> None:
    placement = locked.placement
    reason = f"stopped by {placement.desired_by}" if placement.is_stopped else f"stopped with its daemon on {placement.machine}"
    confirm_stop(locked, reason=reason, actor=actor)
    finish_commands(locked.agent, [Act.STOP], "complete", outcome="no process is left", generation=placement.generation)
    continue_move(placement)


def apply_command_report(machine: Machine, report: dict[str, Any], *, trigger: str) -> None:
    command = Command.objects.filter(pk=read_id(report.get("command")), machine=machine).select_related("agent").first()
    if command is None:
        raise Rejected(f"command {clean_line(report.get('command'))} is not one of {machine}")
    finish_one(command, trigger, actor=machine.name, outcome=clean_text(report.get("message")))


COMMAND_REPORTS = {"command.failed": "fail", "command.completed": "complete"}
REPORTS: dict[str, Callable[[Run, dict[str, Any]], None]] = {
    "run.validated": lambda run, report: apply_step(run, report, until=RunState.READY),
    "run.preparing": lambda run, report: apply_step(run, report, until=RunState.PREPARING),
    "run.launched": lambda run, report: apply_step(run, report, until=RunState.RUNNING),
    "run.aborting": apply_aborting,
    "run.exited": apply_exit,
    "run.failed": apply_exit,
    "run.stopped": apply_stopped,
    "run.frozen": apply_frozen,
    "run.continued": apply_continued,
}
