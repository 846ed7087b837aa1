"""Deliberate defects of the program: each must be caught by the simulation, or the simulation is not worth its name."""

import gc
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any

from django.utils.module_loading import import_string

from chatroom.prepared import Prepared

from .plan import LOPSIDED
from .running import Result, run_seed


@dataclass(frozen=True)
class Mutant:
    """`function`: its dotted name; `find` in its source becomes `become`. `factors`: what shows it more often."""

    name: str
    function: str
    find: str
    become: str
    factors: Mapping[str, float] | None = None


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Exchanges the function's code, so that whoever holds the function by name has the defect too."""
    function = find_function(mutant.function)
    original = function.__code__
    function.__code__ = mutate(function, mutant)
    forget_statements()
    try:
        yield
    finally:
        function.__code__ = original
        forget_statements()


def forget_statements() -> None:
    """What was built once of a function that is now another one."""
    for found in gc.get_objects():
        if isinstance(found, Prepared):
            for name in ("compiler", "statement", "converters"):
                found.__dict__.pop(name, None)


def find_function(name: str) -> Any:
    try:
        found = import_string(name)
    except ImportError:
        owner, _, method = name.rpartition(".")
        found = getattr(import_string(owner), method)
    return inspect.unwrap(found)


def mutate(function: Any, mutant: Mutant) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    if mutant.find not in source:
        raise LookupError(f"mutant {mutant.name!r}: {mutant.function} has no {mutant.find!r} any more")
    module = compile(source.replace(mutant.find, mutant.become, 1), f"<mutant: {mutant.name}>", "exec", dont_inherit=True)
    return next(code for code in module.co_consts if isinstance(code, CodeType) and code.co_name == function.__name__)


@dataclass(frozen=True)
class Hunt:
    mutant: Mutant
    seeds: int
    caught: Result | None


def hunt(mutant: Mutant, *, seeds: int = 60, steps: int = 300) -> Hunt:
    """Seed after seed, an ordinary one and a lopsided one in turn, until one breaks that holds without the defect."""
    others = [seed for number in range(1, seeds // 2 + 1) for seed in (number, LOPSIDED + number)]
    for tried, seed in enumerate(others, start=1):
        with applied(mutant):
            result = run_seed(seed, steps=steps, factors=mutant.factors)
        if result.violation is not None and run_seed(seed, steps=steps, factors=mutant.factors).violation is None:
            return Hunt(mutant, tried, result)
    return Hunt(mutant, seeds, None)


OTHER_ENDS = ("actor.act_on_agent", "faults.kill_web", "faults.kill_run", "faults.kill_daemon", "faults.lose_power")
MUTANTS = (
    Mutant(
        "no fencing: an act with an outdated claim is accepted",
        "agents.services.work.held",
        "if not claim.is_open or claim.incarnation != agent.incarnation or agent.status != AgentStatus.WORKING:",
        "if False:",
    ),
    Mutant(
        "acknowledged is forgotten in active",
        "chatroom.models.task.TaskQuerySet.active",
        "status__in=ACTIVE",
        "status__in=[S.PENDING, S.IN_PROGRESS]",
    ),
    Mutant(
        "no second look: a run is opened although it is not wanted any more",
        "machines.services.opening.require_wanted",
        "placement, role = locked.placement, locked.agent.role",
        "return",
    ),
    Mutant("no quiet time", "chatroom.sweep.is_quiet_now", "return pulse.quiet_until > now() or", "return"),
    Mutant(
        "a claim is resumed without looking for a later one",
        "agents.services.claims.resumable_claim",
        "return claim if task.status == TaskStatus.PENDING and (task.attempt, task.round) == (claim.attempt, claim.round) else None",
        "return claim",
        factors={"faults.outlast_lease": 6, "actor.start_program": 0.1, "actor.leave": 0, "actor.dismiss": 0},
    ),
    Mutant(
        "an offer that was taken back is confirmed",
        "agents.consumers.AgentConsumer.received",
        '"confirmed" if is_confirmed else "withdrawn"',
        '"confirmed"',
    ),
    Mutant("exhaustion is not remembered", "machines.services.runs.give_up", "placement.exhausted_generation = run.generation", "pass"),
    Mutant("a restart does not bump the generation", "machines.services.desire.begin_start", "placement.generation += 1", "pass"),
    Mutant(
        "joining does not end what the older start held",
        "agents.services.presence.take_over",
        "release_open_claim(agent, outcome=Outcome.SUPERSEDED, actor=actor, reason=note)",
        "None",
    ),
    Mutant("ready without a lease", "agents.models.Agent.task_complete", "= lease, now()", "= None, now()"),
    Mutant(
        "promotion without a busy check",
        "chatroom.services.tasks.next_for_idle_role",
        ".filter(~Exists(mine.active()))",
        "",
    ),
    Mutant("the answer of an act is not stored", "chatroom.idempotency.Once.remember", "insert_in_time(record)", "pass"),
    Mutant(
        "a late goodbye ends the successor",
        "agents.services.presence.leave_agent",
        "(agent.incarnation != incarnation or agent.kind == AgentKind.REMOTE)",
        "agent.kind == AgentKind.REMOTE",
    ),
    Mutant(
        "exits that are nobody's fault count as crashes", "machines.services.runs.free_task", 'run.verdict == "faulty" and claim', "claim"
    ),
    Mutant("work wakes an agent that was stopped", "machines.services.desire.why_not_wakeable", "if placement.is_stopped:", "if False:"),
    Mutant(
        "the daemon vouches for a frozen process",
        "machines.daemon.supervisor.Supervisor.vouched",
        " or process.is_stopped()",
        "",
        factors={"faults.freeze_run": 6, **dict.fromkeys(OTHER_ENDS, 0.2)},
    ),
    Mutant(
        "a timer releases the task of a living holder",
        "agents.sweep.recover_stuck",
        "if not task.is_held or (claim is not None and claim.agent.is_live):",
        "if not task.is_held:",
    ),
    Mutant(
        "the end of a process leaves its task in its hands",
        "machines.services.runs.settle_agent",
        "freed = free_task(run, message=message)",
        "freed = None",
    ),
    Mutant(
        "a lost run leaves its agent as it was",
        "machines.services.runs.fail_lost_run",
        'settle_agent(run, {"do": "none"}, message=message, may_wake=may_wake)',
        "pass",
        factors={"faults.lose_runs": 8},
    ),
    Mutant(
        "the queue is not promoted after a handoff",
        "agents.services.work.finish",
        "promote_next(room_id, role=hold.task.assigned_role)",
        "pass",
    ),
    Mutant(
        "a dead agent keeps its task",
        "agents.sweep.expire_lease",
        'release_open_claim(agent, outcome=Outcome.LEASE_EXPIRED, actor="sweep", reason=f"{agent.role} is dead: {reason}")',
        "None",
    ),
    Mutant(
        "the next process starts before the last one is gone",
        "machines.daemon.supervisor.Supervisor.conclude_process",
        "await process.gone()",
        "pass",
    ),
    Mutant("renewals do not renew", "agents.services.presence.renew_lease", "lease_expires_at=waiting, ", ""),
    Mutant(
        "the end of an old socket cuts the newer one's lease",
        "agents.services.presence.disconnect_agent",
        "incarnation=incarnation, connection=connection)",
        "incarnation=incarnation)",
        factors={"faults.drop_connections": 4},
    ),
)
