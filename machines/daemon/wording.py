"""How ends, decisions and runs are told: to the server as JSON, to people as words."""

from typing import Any

from machines.daemon import policy
from machines.daemon.policy import Ending
from machines.daemon.process import AgentProcess
from machines.daemon.runs import ExitRecord, Note, RunInfo


def describe_run(info: RunInfo, *, state: str, pid: int | None = None, age: float = 0.0, stopped: bool = False) -> dict[str, Any]:
    return {"run": info.run, "agent": info.agent, "generation": info.generation, "state": state, "pid": pid, "age": age, "stopped": stopped}


def describe_process(process: AgentProcess, *, now: float) -> dict[str, Any]:
    state = "aborting" if process.directory.asked() else "running" if process.pid else "preparing"
    return describe_run(process.info, state=state, pid=process.pid, age=round(now - process.started, 1), stopped=process.is_stopped())


def describe_ending(record: ExitRecord, note: Note, *, asked: str | None, joined: bool, is_ours: bool) -> Ending:
    """For the policy. What never got as far as a program is a crash only if this very daemon tried it."""
    return Ending(
        code=record.code,
        signal=record.signal,
        asked=asked,
        launch_error=record.error,
        machine_lost=record.machine_lost or (record.never_started and not is_ours),
        joined=joined,
        failure=note.failure,
        retry_after=note.retry_after,
    )


def describe_end(record: ExitRecord, note: Note) -> str:
    return f"{record.describe()}: {note.message}" if note.message else record.describe()


def classify(ending: Ending) -> str:
    if ending.asked == "deadline":
        return "no_join"
    if ending.asked is not None:
        return "asked"
    if ending.machine_lost:
        return "lost"
    if ending.launch_error is not None:
        return "launch"
    return "transient" if policy.judge(ending) == "transient" else "crash"


def describe_freezing(change: str) -> str:
    return {"stopped": "is stopped (SIGSTOP)", "frozen": "is still stopped: reported as frozen", "continued": "goes on"}[change]


def describe_decision(decision: policy.Decision) -> str:
    match decision:
        case policy.Restart(after, attempt, attempts):
            return f"restart in {after:.1f} s (attempt {attempt} of {attempts})"
        case policy.Exhausted(reason):
            return f"no further attempt: {reason}"
        case _:
            return "no restart"


def decision_as_json(decision: policy.Decision, verdict: policy.Verdict) -> dict[str, Any]:
    match decision:
        case policy.Restart(after, attempt, attempts):
            return {"do": "restart", "in": round(after, 3), "attempt": attempt, "attempts": attempts, "verdict": verdict}
        case policy.Exhausted(reason):
            return {"do": "exhausted", "reason": reason, "verdict": verdict}
        case _:
            return {"do": "none", "verdict": verdict}
