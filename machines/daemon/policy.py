"""The daemon's decisions: pure functions of what is known, the time and a random number. No I/O, no clock of their own.

Times are seconds of one monotonic clock, the caller's. A history holds the agent's exits since a person last started it, oldest first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Verdict = Literal["faulty", "transient", "asked", "lost"]
Desired = Literal["on_demand", "running", "stopped"]

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL
TRANSIENT_NOTES = frozenset({"rate_limited", "quota", "timeout", "overloaded", "network", "unavailable"})


@dataclass(frozen=True)
class Limits:
    attempts: int = 3
    delay: float = 3.0
    delay_max: float = 60.0
    jitter: float = 0.2
    deadline: float = 60.0
    windows: tuple[tuple[float, int], ...] = ((600.0, 5), (86400.0, 20))
    breaker_agents: int = 4
    breaker_seconds: float = 30.0
    retry_after_max: float = 86400.0

    def changed(self, settings: Mapping[str, Any]) -> "Limits":
        """With what the server says; what it does not say stays."""
        names = {"attempts": "restart_attempts", "delay": "restart_delay", "delay_max": "restart_delay_max", "deadline": "restart_deadline"}
        return replace(self, **{ours: type(getattr(self, ours))(settings[theirs]) for ours, theirs in names.items() if theirs in settings})


@dataclass(frozen=True)
class Exit:
    run: int
    at: float
    joined: bool
    verdict: Verdict
    generation: int = 0
    retry_after: float | None = None


@dataclass(frozen=True)
class Ending:
    """How a process ended, as far as its machine can know."""

    code: int | None = None
    signal: int | None = None
    asked: str | None = None
    launch_error: str | None = None
    machine_lost: bool = False
    joined: bool = False
    failure: str | None = None  # from the note a program may leave
    retry_after: float | None = None


@dataclass(frozen=True)
class Restart:
    after: float
    attempt: int
    attempts: int


@dataclass(frozen=True)
class Exhausted:
    reason: str


@dataclass(frozen=True)
class Nothing:
    pass


Decision = Restart | Exhausted | Nothing


def judge(ending: Ending) -> Verdict:
    """In loop mode every exit nobody asked for is faulty, exit 0 too. What a program prints says nothing."""
    if ending.asked == "deadline":
        return "faulty"
    if ending.asked is not None:
        return "asked"
    if ending.machine_lost:
        return "lost"
    if ending.code == TEMPORARY_FAILURE or ending.failure in TRANSIENT_NOTES:
        return "transient"
    return "faulty"


def decide(
    history: Sequence[Exit],
    *,
    wanted: bool,
    limits: Limits,
    now: float,
    random: float,
    last_words: str = "",
    is_renewed: bool = False,
    is_permanent: bool = False,
) -> Decision:
    """What follows the last exit of the history. `wanted`: a run is desired; `is_renewed`: of a newer generation than the one that ended,
    so its past is over; `is_permanent`: it will not go better the next time."""
    if not wanted:
        return Nothing()
    if is_renewed:
        return Restart(0.0, 1, limits.attempts)
    if is_permanent:
        return Exhausted(last_words)
    last = history[-1]
    if last.verdict == "asked":
        return Restart(0.0, failed_attempts(history) + 1, limits.attempts)
    failed = failed_attempts(history)
    if reason := exhaustion(history, failed=failed, limits=limits, now=now):
        return Exhausted(f"{reason}; the last: {last_words}" if last_words else reason)
    return Restart(backoff(history, failed=failed, limits=limits, random=random), failed + 1, limits.attempts)


def failed_attempts(history: Sequence[Exit]) -> int:
    """Faulty exits in a row that never joined. Joining ends the row; transient, asked and lost ones are not seen."""
    count = 0
    for exit_ in reversed(history):
        if exit_.joined:
            break
        count += exit_.verdict == "faulty"
    return count


def exhaustion(history: Sequence[Exit], *, failed: int, limits: Limits, now: float) -> str:
    """Why nothing automatic may start it again; empty when it may. Only a faulty exit can use up anything."""
    if history[-1].verdict != "faulty":
        return ""
    if failed >= limits.attempts:
        return f"{failed} of {limits.attempts} attempts failed"
    for seconds, most in limits.windows:
        count = sum(exit_.verdict == "faulty" and now - exit_.at <= seconds for exit_ in history)
        if count >= most:
            return f"{count} faulty exits in {describe_span(seconds)}"
    return ""


def describe_span(seconds: float) -> str:
    if seconds % 3600 == 0:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 60:.0f} min" if seconds % 60 == 0 else f"{seconds:g} s"


def backoff(history: Sequence[Exit], *, failed: int, limits: Limits, random: float) -> float:
    last = history[-1]
    if last.verdict == "transient":
        steps = trailing(history, "transient")
        if last.retry_after is not None:  # told when: never earlier, and not all at the same instant
            return min(max(last.retry_after, 0.0), limits.retry_after_max) + limits.delay * limits.jitter * random
    else:
        steps = max(failed, 1)
    raw = min(limits.delay * 2 ** min(steps - 1, 30), limits.delay_max)
    return float(raw * (1 + limits.jitter * (2 * random - 1)))


def trailing(history: Sequence[Exit], verdict: Verdict) -> int:
    count = 0
    for exit_ in reversed(history):
        if exit_.verdict != verdict:
            break
        count += 1
    return count


def earliest_start(history: Sequence[Exit], *, limits: Limits, now: float, random: float) -> float:
    """When a daemon that comes back may start it: the rest of the delay that its last exit asked for."""
    if not history or history[-1].verdict == "asked":
        return now
    return history[-1].at + backoff(history, failed=failed_attempts(history), limits=limits, random=random)


@dataclass(frozen=True)
class Wanted:
    """What the server wants of one agent."""

    generation: int
    desired: Desired
    exhausted: int | None = None
    mode: str = "loop"

    @property
    def runs(self) -> bool:
        """Is a process wanted? A task-mode agent has none of its own."""
        return self.desired == "running" and self.exhausted != self.generation and self.mode == "loop"


@dataclass(frozen=True)
class Living:
    run: int
    generation: int


@dataclass(frozen=True)
class Keep:
    run: int


@dataclass(frozen=True)
class Stop:
    run: int
    asked: str


@dataclass(frozen=True)
class Start:
    generation: int


@dataclass(frozen=True)
class Wait:
    until: float


@dataclass(frozen=True)
class Rest:
    pass


Act = Keep | Stop | Start | Wait | Rest


def next_act(wanted: Wanted | None, living: Living | None, *, earliest: float, now: float, known: bool = True) -> Act:
    """One agent's next step. `known` is false until a server has spoken: then what lives, lives on, and nothing is started."""
    if not known:
        return Keep(living.run) if living else Rest()
    if living is not None:
        if asked := why_stop(wanted, living):
            return Stop(living.run, asked)
        return Keep(living.run)
    if wanted is None or not wanted.runs:
        return Rest()
    return Start(wanted.generation) if earliest <= now else Wait(earliest)


def why_stop(wanted: Wanted | None, living: Living) -> str:
    """Empty when it may live. Exhaustion ends nothing that lives: it only forbids starting."""
    if wanted is None:
        return "removed"
    if wanted.desired != "running" or wanted.mode != "loop":
        return "stop"
    return "restart" if living.generation != wanted.generation else ""


def who_asked(asked: str | None, *, wanted: Wanted | None, living: Living) -> str | None:
    """Of a process that has ended. An outdated one ended as asked for: its program may hear of the newer generation before its daemon."""
    if asked in {None, "deadline"} and wanted is not None and wanted.generation > living.generation:
        return why_stop(wanted, living)
    return asked


def breaker_is_open(deaths: Iterable[tuple[int, float]], *, agents: int, limits: Limits, now: float) -> bool:
    """More than half of at least four agents died within the window: restart them one at a time."""
    recent = {agent for agent, at in deaths if now - at <= limits.breaker_seconds}
    return agents >= limits.breaker_agents and len(recent) * 2 > agents
