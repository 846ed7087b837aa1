"""What one supervisor reports: the only place that knows the fields and the keys of reports about runs."""

import uuid
from collections.abc import Callable
from typing import Any

from machines.daemon import policy
from machines.daemon.freezing import Change
from machines.daemon.messages import AgentEntry
from machines.daemon.process import AgentProcess
from machines.daemon.reports import Reports
from machines.daemon.runs import ExitRecord, RunInfo
from machines.daemon.wording import decision_as_json


class Teller:
    def __init__(self, agent: int, reports: Reports) -> None:
        self.agent, self.reports = agent, reports
        self.told_stopped: tuple[int, int] | None = None

    async def step(self, report: str, info: RunInfo, **fields: Any) -> None:
        """Once per run: a repeat has the same key, so the first one stands."""
        await self.put(report, info, key=f"run:{info.run}:{report.partition('.')[2]}", **fields)

    async def freezing(self, change: Change, process: AgentProcess, *, seconds: float) -> None:
        """May come again in the same run."""
        await self.put(f"run.{change}", process.info, key=f"run:{process.info.run}:{change}:{uuid.uuid4().hex[:8]}", seconds=seconds)

    async def exit(
        self,
        info: RunInfo,
        record: ExitRecord,
        *,
        asked: str | None,
        stage: str | None,
        failure: str,
        message: str,
        decision: policy.Decision,
        verdict: policy.Verdict,
        answered: Callable[[], None],
    ) -> None:
        """The end and what follows from it, in one report."""
        how: dict[str, Any] = {"stage": stage} if stage else {"code": record.code, "signal": record.signal, "asked": asked}
        then = {"failure": failure, "message": message, "lines": record.lines, "decision": decision_as_json(decision, verdict)}
        await self.put("run.failed" if stage else "run.exited", info, key=exit_key(info.run), answered=answered, **how, **then)

    async def stopped(self, entry: AgentEntry, *, last_run: int, is_closing: bool) -> None:
        """Nothing of it lives: told once where somebody waits to hear it. An exhausted agent that ends with its daemon stays what it is."""
        state = (entry.generation, last_run)
        is_asked = entry.desired == "stopped" and (entry.command is not None or entry.run is not None or last_run)
        if self.told_stopped == state or not (is_asked or (is_closing and last_run and entry.wanted.runs)):
            return
        self.told_stopped = state
        command = entry.command if entry.desired == "stopped" else None
        key = f"agent:{self.agent}:stopped:{entry.generation}:{last_run}:{command or 0}"
        await self.reports.put("agent.stopped", key=key, agent=self.agent, generation=entry.generation, command=command)

    async def put(self, report: str, info: RunInfo, *, key: str, **fields: Any) -> None:
        await self.reports.put(report, key=key, run=info.run, agent=info.agent, generation=info.generation, **fields)


def exit_key(run: int) -> str:
    return f"run:{run}:exited"
