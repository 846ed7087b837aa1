"""The life of a run, and what its end means for the agent and for the task it holds. Called with the room's lock held."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import QuerySet
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim, Outcome
from agents.services.claims import announce_pending, lock_agent, open_claim_of, release_claim
from agents.services.presence import end_incarnation
from agents.services.work import fail_held_task
from chatroom import notices
from chatroom.errors import WrongState
from chatroom.events import move, record_event
from chatroom.models import Task, Token, TokenKind
from chatroom.prepared import Prepared
from chatroom.services.messages import post_notice
from chatroom.services.rooms import room_locked
from chatroom.services.tasks import promote_next
from machines import hints
from machines.models import Act, Desired, Placement, Run, RunState
from machines.untrusted import clean_text

from .desire import exhaustion_episode, finish_commands, wake_up

LATE_RESULTS_FOR = timedelta(hours=24)
HISTORY, LONGEST_HISTORY = timedelta(hours=24), 25
STEPS = [(RunState.VALIDATING, "validated"), (RunState.READY, "prepare"), (RunState.PREPARING, "launch")]
# Who asked for its end wanted the agent to end with it.
ENDS_AGENT = {
    "stop": "stopped by {by}",
    "removed": "stopped: it lives elsewhere now",
    "daemon_stop": "stopped with its daemon on {machine}",
    "server_loss": "stopped: {machine} had lost the server",
}
SHOWN_LINES = 5


def current_placement(run: Run) -> Placement | None:
    """The agent's placement, locked, if this run is its current one: only then a report touches the agent."""
    return CURRENT_PLACEMENT.first(agent=run.agent_id, run=run.pk)


CURRENT_PLACEMENT = Prepared[Placement](
    lambda agent, run: Placement.objects.filter(agent=agent, current_run=run).select_for_update(of=("self",)).select_related("machine")
)


def lock_run(run_id: int) -> Run:
    """With its machine. Raises Run.DoesNotExist."""
    run = LOCKED_RUN.first(run=run_id)
    if run is None:
        raise Run.DoesNotExist(f"there is no run {run_id}")
    return run


LOCKED_RUN = Prepared[Run](lambda run: Run.objects.filter(pk=run).select_for_update(of=("self",)).select_related("machine"))


def walk(run: Run, *, until: str, pid: int | None = None) -> bool:
    """Skipped states are walked, one event each; False if it was there already, or further."""
    before = run.state
    for state, trigger in STEPS:
        if run.state == state and state != until:
            fields: dict[str, Any] = {"pid": pid} if trigger == "launch" else {}
            move(run, trigger, actor=run.machine.name, **fields)
    return run.state != before


def note_pid(run: Run, pid: int | None) -> None:
    """Of a run whose program joined before the server was told which process it is."""
    if run.state == RunState.RUNNING and run.pid is None and pid is not None:
        run.pid = pid
        run.save()
        record_event(run, "tell_pid", actor=run.machine.name, room_id=run.agent.room_id, role=run.agent.role, data={"pid": pid})


def note_progress(run: Run) -> None:
    Placement.objects.filter(current_run=run).update(restart_noted_at=now())


def finish_run(run: Run, *, message: str, has_run: bool, age: timedelta = timedelta()) -> None:
    """completed when it ended as asked, failed otherwise: in loop mode no exit that nobody asked for is a good one."""
    if run.asked and run.asked != "deadline":
        if run.state != RunState.ABORTING:
            move(run, "abort", actor=run.machine.name, reason=run.asked)
        move(run, "aborted", actor=run.machine.name, reason=message)
    else:
        if has_run:
            walk(run, until=RunState.RUNNING)
        fail_run(run, message=message, actor=run.machine.name)
    run.ended_at = max(run.created_at, now() - age)
    run.save()
    end_token(run)
    finish_commands(run.agent, [Act.ABORT], "complete", outcome=f"run {run.pk} {run.state}: {message}")


def fail_run(run: Run, *, message: str, actor: str) -> None:
    run.error_message = message
    move(run, "fail", actor=actor, reason=message, data={"code": run.exit_code, "signal": run.signal})


def end_token(run: Run) -> None:
    """From now on it may only deliver late results."""
    Token.objects.filter(kind=TokenKind.AGENT, subject_id=run.pk).update(expires_at=now() + LATE_RESULTS_FOR)


def settle_agent(run: Run, decision: dict[str, Any], *, message: str, may_wake: bool = True) -> None:
    """What the end of its current run means for the agent and for the task it holds."""
    placement = current_placement(run)
    if placement is None:
        return
    freed = None
    if run.agent.is_live:
        freed = free_task(run, message=message)
        end_agent(run, message=message, stopped_by=placement.desired_by)
    elif run.agent.status == AgentStatus.DEAD:
        forget_process(run.agent, message=message)
    apply_decision(run, placement, decision, message=message)
    announce_pending(freed)
    if may_wake:
        wake_up(run.agent.room_id, role=run.agent.role)


def end_agent(run: Run, *, message: str, stopped_by: str) -> None:
    end_incarnation(run.agent, f"run {run.pk} {message}")
    if asked := ENDS_AGENT.get(run.asked):
        reason = f"{asked.format(by=stopped_by or 'chatroom', machine=run.machine)} ({message})"
        move(run.agent, "leave", actor=run.machine.name, reason=reason)
    else:
        move(run.agent, "process_exited", actor=run.machine.name, reason=message, error_message=message)


def forget_process(agent: Agent, *, message: str) -> None:
    """It was declared dead before its process ended: whatever is left of that process can't speak for it any more."""
    end_incarnation(agent, message)
    agent.forget_connection(error_message=message)
    agent.save()


def free_task(run: Run, *, message: str) -> Task | None:
    """The task of a process that ended: pending again; failed when it was aborted, or has crashed too many agents (None)."""
    agent, claim = run.agent, open_claim_of(run.agent)
    if claim is None:
        return None
    task = claim.task
    if run.verdict == "faulty" and claim.delivered_at is not None:
        task.crashes += 1
        task.save()
    who = f"{agent.role} on {run.machine.name} {message}"
    if run.asked == "abort":
        fail_claimed(run, task, claim, reason=f"aborted: {who}", outcome=Outcome.ABORTED)
        return None
    if task.crashes >= settings.MAX_CRASHES:
        reason = f"it crashed its agent {task.crashes} times, the last time: {who}"
        fail_claimed(run, task, claim, reason=reason, outcome=Outcome.PROCESS_EXITED)
        return None
    return release_claim(claim, outcome=Outcome.PROCESS_EXITED, actor=run.machine.name, reason=who)


def fail_claimed(run: Run, task: Task, claim: Claim, *, reason: str, outcome: str) -> None:
    fail_held_task(run.agent.room, task, claim=claim, reason=reason, actor=run.machine.name, outcome=outcome)
    post_notice(run.agent.room, f"Task {task.pk} failed: {reason}", task=task)
    promote_next(task.room_id, role=task.assigned_role)


def apply_decision(run: Run, placement: Placement, decision: dict[str, Any], *, message: str) -> None:
    """Only for the generation it was made for: a start, a stop or a restart given meanwhile wins."""
    agent, act = run.agent, decision.get("do")
    if run.generation != placement.generation:
        return
    if act == "restart" and placement.desired_state == Desired.RUNNING:
        placement.restart_attempt, placement.restart_attempts = int(decision.get("attempt", 1)), int(decision.get("attempts", 0))
        placement.restart_at = now() + timedelta(seconds=min(float(decision.get("in", 0)), 86400))
        placement.restart_noted_at = placement.restart_at
        placement.save()
        agent.error_message = message
        if agent.status in (AgentStatus.DEAD, AgentStatus.OFFLINE):
            move(agent, "restart_initiated", actor=run.machine.name, reason=f"{message}; attempt {placement.restart_attempt}")
        else:
            agent.save()
            record_event(run, "wait", actor=run.machine.name, room_id=agent.room_id, role=agent.role, reason=message)
    elif act == "exhausted":
        give_up(run, placement, reason=clean_text(decision.get("reason") or message))
    else:
        placement.forget_wait()
        placement.save()


def give_up(run: Run, placement: Placement, *, reason: str) -> None:
    """Nothing automatic starts this generation again; people are told once, with the reason."""
    agent = run.agent
    placement.exhausted_generation = run.generation
    placement.forget_wait()
    placement.save()
    text = f"{reason} (on {run.machine.name})"
    if agent.status in (AgentStatus.RESTARTING, AgentStatus.DEAD, AgentStatus.OFFLINE):
        move(agent, "restart_exhausted", actor=run.machine.name, reason=text, error_message=text)
    finish_commands(agent, [Act.START, Act.RESTART], "fail", outcome=text)
    last = "".join(f"\n    {line}" for line in run.last_lines[-SHOWN_LINES:])
    told = f"{agent.role} is unrecoverable: {text}. Restart it once mended." + (f"\n{last}" if last else "")
    notices.tell(agent.room, exhaustion_episode(placement), text=told)


def fail_lost_run(run_id: int, *, message: str, may_wake: bool = True) -> None:
    """A run that its machine should have and does not know: lost with its machine. Not the program's fault, and not counted."""
    found = Run.objects.select_related("agent").get(pk=run_id)
    with room_locked(found.agent.room_id) as room:
        run = lock_run(run_id)
        run.agent = lock_agent(room.pk, pk=run.agent_id)
        if run.is_finished:
            return
        run.failure, run.verdict = "lost", "lost"
        fail_run(run, message=message, actor="chatroom")
        end_token(run)
        finish_commands(run.agent, [Act.ABORT], "complete", outcome=message)
        settle_agent(run, {"do": "none"}, message=message, may_wake=may_wake)


def note_join(agent: Agent, run_id: int) -> None:
    """The start succeeded: its command is completed, the deadline is met."""
    run = lock_run(run_id)
    run.agent = agent
    walk(run, until=RunState.RUNNING, pid=run.pid)
    run.joined_at = run.joined_at or now()
    run.save()
    Placement.objects.filter(agent=agent).update(restart_attempt=0, restart_attempts=0, restart_at=None)
    finish_commands(agent, [Act.START, Act.RESTART], "complete", outcome=f"{agent.role} is running", generation=run.generation)
    hints.machine_changed(run.machine_id)


def require_current_run(agent: Agent, run_id: int | None) -> Run:
    """A run of an outdated generation may go on until its daemon ends it, but not begin to take work."""
    run = RUN_OF_AGENT.first(run=run_id or 0, agent=agent.pk)
    placement = PLACEMENT.first(agent=agent.pk)
    is_current = run is not None and placement is not None and placement.current_run_id == run.pk and not run.is_finished
    if run is None or not is_current:
        raise WrongState(f"run {run_id} is not the current one of {agent.role}")
    if run.joined_at is None and placement is not None and run.generation != placement.generation:
        raise WrongState(f"run {run_id} of {agent.role} is outdated: generation {placement.generation} is wanted")
    return run


RUN_OF_AGENT = Prepared[Run](lambda run, agent: Run.objects.filter(pk=run, agent=agent))
PLACEMENT = Prepared[Placement](lambda agent: Placement.objects.filter(agent=agent))


def histories(placements: list[Placement]) -> dict[int, list[dict[str, Any]]]:
    """For each agent the exits of the last 24 h since a person last reset them, oldest first, as the daemon's policy counts them."""
    since: dict[int, datetime] = {placement.agent_id: max(placement.history_since, now() - HISTORY) for placement in placements}
    found: dict[int, list[dict[str, Any]]] = {agent_id: [] for agent_id in since}
    if not since:
        return found
    for agent_id, run_id, generation, ended_at, joined_at, verdict in exits_of(placements, oldest=min(since.values())):
        if agent_id in since and ended_at > since[agent_id]:
            # An exit noted before the clock was set back looks as if it were still to come: the daemon would wait for it.
            age = max(0.0, round((now() - ended_at).total_seconds(), 3))
            exit_ = {"run": run_id, "generation": generation, "age": age, "joined": joined_at is not None, "verdict": verdict}
            found[agent_id].append(exit_)
    return {agent_id: exits[-LONGEST_HISTORY:] for agent_id, exits in found.items()}


def exits_of(placements: list[Placement], *, oldest: datetime) -> Iterable[Any]:
    """Of one agent, or of all on its machine."""
    if len(placements) == 1:
        return EXITS_OF_AGENT.converted(EXITS_OF_AGENT.plain_rows(agent=placements[0].agent_id, oldest=oldest))
    return EXITS_ON_MACHINE.converted(EXITS_ON_MACHINE.plain_rows(machine=placements[0].machine_id, oldest=oldest))


def ended_since(runs: QuerySet[Run], oldest: Any) -> QuerySet[Run, Any]:
    ended = runs.filter(ended_at__gt=oldest).exclude(verdict="").order_by("ended_at", "pk")
    return ended.values_list("agent", "pk", "generation", "ended_at", "joined_at", "verdict")


EXITS_OF_AGENT = Prepared[Run](lambda agent, oldest: ended_since(Run.objects.filter(agent=agent), oldest))
EXITS_ON_MACHINE = Prepared[Run](lambda machine, oldest: ended_since(Run.objects.filter(agent__placement__machine=machine), oldest))
