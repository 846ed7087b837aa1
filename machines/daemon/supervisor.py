"""One supervisor per agent: does what the policy decides, one step at a time, and looks again after every wait."""

import asyncio
import contextlib
import traceback
import uuid
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

from machines.daemon import policy
from machines.daemon.errors import LinkLost, StartRefused
from machines.daemon.freezing import Change, FreezeWatch
from machines.daemon.launching import Prepared, launch, prepare
from machines.daemon.messages import AgentEntry, BadMessage, Grant
from machines.daemon.past import Past
from machines.daemon.policy import Ending, Exit, Keep, Living, Rest, Start, Stop, Wait
from machines.daemon.process import AgentProcess, first_of
from machines.daemon.runs import ExitRecord, RunInfo
from machines.daemon.surroundings import Surroundings
from machines.daemon.telling import Teller
from machines.daemon.wording import (
    classify,
    describe_decision,
    describe_end,
    describe_ending,
    describe_freezing,
    describe_process,
    describe_run,
)

AFTER_REFUSAL = 2.0  # the server said no: whatever the reason, not again at once


class Supervisor:
    def __init__(self, agent: int, around: Surroundings) -> None:
        self.agent, self.around = agent, around
        self.entry: AgentEntry | None = None
        self.known = False
        self.process: AgentProcess | None = None
        self.adopted: list[AgentProcess] = []  # still to be taken over, one after the other
        self.opened: RunInfo | None = None  # a run of the server's that has no process yet
        self.past = Past()
        self.earliest = 0.0
        self.changed = asyncio.Event()
        self.closing: str | None = None
        self.to_abort: dict[int, str] = {}  # the reason belongs to the run it was given for
        self.tell = Teller(agent, around.reports)
        self.last_run = 0
        self.freezing = FreezeWatch()
        self.note = "waiting for the server"

    def adopt(self, processes: list[AgentProcess]) -> None:
        """What an earlier daemon started, oldest first. A stop it had begun is finished; of two that live, the newer one stays."""
        ordered = sorted(processes, key=lambda one: (one.info.generation, one.info.run))
        living = [one.info.run for one in ordered if not one.has_ended()]
        for process in ordered:
            asked = process.directory.asked() or ("superseded" if process.info.run in living[:-1] else None)
            if asked is not None and process.info.run in living:
                self.to_abort[process.info.run] = asked
            self.around.watch_log(process)
        self.adopted += ordered
        self.changed.set()

    def recall(self, entry: AgentEntry | None) -> None:
        """The server's last word of before: good enough to judge an end by, never to start anything."""
        if entry is not None:
            self.entry = entry
            self.past.take(entry, now=self.around.now())

    def update(self, entry: AgentEntry | None, *, is_snapshot: bool = False) -> None:
        """The server's word; None: no longer an agent of this machine. An older generation is a late message, but never in a snapshot."""
        if entry is not None and self.entry is not None and entry.generation < self.entry.generation and not is_snapshot:
            return
        is_new = entry is not None and (self.entry is None or not self.known or entry.generation != self.entry.generation)
        self.known, self.entry = True, entry
        self.take_joining(entry)
        if entry is not None:
            self.past.take(entry, now=self.around.now())
        if is_new:
            self.earliest = policy.earliest_start(
                self.past.exits, limits=self.around.limits, now=self.around.now(), random=self.around.random()
            )
        self.changed.set()

    def take_joining(self, entry: AgentEntry | None) -> None:
        if self.process is not None and entry is not None and entry.joined and entry.run == self.process.info.run:
            self.process.joined = True
            self.around.brake.give_up_turn(self.agent)

    def abort(self, *, asked: str, run: int | None = None) -> bool:
        """Ends that run (or whichever lives); False when there is none."""
        mine = self.process.info.run if self.process is not None else self.opened.run if self.opened is not None else None
        if mine is None or run not in {None, mine}:
            return False
        self.to_abort.setdefault(mine, asked)
        self.changed.set()
        return True

    def close(self, asked: str) -> None:
        self.closing = asked
        self.changed.set()

    @property
    def name(self) -> str:
        if self.entry is not None:
            return self.entry.name
        known = [one.info for one in [self.process, *self.adopted] if one is not None]
        return f"{known[0].role} in {known[0].room}" if known else f"agent {self.agent}"

    @property
    def is_wanted(self) -> bool:
        return self.entry is not None and self.entry.wanted.runs

    def vouched(self) -> int | None:
        """The run whose process is alive and not stopped."""
        process = self.process
        if process is None or process.pid is None or process.has_ended() or process.is_stopped():
            return None
        return process.info.run

    def describe_runs(self) -> list[dict[str, Any]]:
        """What lives, or whose end is not in the outbox yet: the server fails every run that nobody names."""
        now, processes = self.around.now(), [self.process, *self.adopted]
        found = [describe_process(one, now=now) for one in processes if one is not None and not one.directory.is_settled()]
        if self.opened is not None and self.process is None:
            found.append(describe_run(self.opened, state="preparing"))
        return found

    def describe(self) -> dict[str, Any]:
        """For a person."""
        run = {"id": self.process.info.run, "pid": self.process.pid} if self.process is not None else None
        place = {"room": self.entry.room, "role": self.entry.role} if self.entry is not None else {}
        return {"agent": self.agent, **place, "run": run, "state": self.note}

    async def run(self) -> None:
        """Until it is closed or removed, and nothing of it lives."""
        while True:
            try:
                if await self.step():
                    return
            except Exception:  # whatever it is, this agent must not be without supervision
                self.around.say(f"{self.name}: unexpected error, going on\n{traceback.format_exc()}")
                await asyncio.sleep(1)

    async def step(self) -> bool:
        """One act; True when there is nothing left to look after."""
        self.changed.clear()
        if self.process is None and self.adopted:
            self.process = self.adopted.pop(0)
            self.last_run = self.process.info.run
            self.take_joining(self.entry)
        match self.next_act():
            case Keep():
                await self.watch()
            case Stop(asked=asked):
                await self.end(asked)
            case Start():
                await self.start()
            case Wait(until):
                self.note = f"restart in {until - self.around.now():.1f} s"
                await self.wait_for_change(until - self.around.now())
            case Rest():
                await self.settle()
                if self.is_over():
                    return True
                await self.wait_for_change()
        return False

    def next_act(self) -> policy.Act:
        process = self.process
        if process is not None and process.has_ended():
            return Keep(process.info.run)  # what has ended is reported as it ended
        if process is not None and (asked := self.closing or self.to_abort.get(process.info.run)):
            return Stop(process.info.run, asked)
        if self.closing:
            return Rest()
        living = Living(process.info.run, process.info.generation) if process else None
        wanted = self.entry.wanted if self.entry else None
        return policy.next_act(wanted, living, earliest=self.earliest, now=self.around.now(), known=self.known)

    def is_over(self) -> bool:
        return self.closing is not None or (self.known and self.entry is None)

    async def wait_for_change(self, seconds: float | None = None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()

    async def watch(self) -> None:
        process = self.living()
        if not process.announced:
            await self.announce(process)
        self.note = "running"
        waits: list[Awaitable[Any]] = [process.ended(), self.changed.wait()]
        if not process.joined and self.known:
            waits.append(self.around.deadline(process))
        done = await first_of(*waits)
        if 0 in done:
            await self.conclude_process(process)
        elif 2 in done:
            await self.check_joined(process)

    def living(self) -> AgentProcess:
        if self.process is None:
            raise AssertionError(f"{self.name}: no process where one was expected")
        return self.process

    async def check_joined(self, process: AgentProcess) -> None:
        """Asks before it ends anybody: the hint that it joined may have been lost."""
        try:
            answer = await self.around.link.ask("joined", run=process.info.run)
        except LinkLost:
            return
        if answer.get("joined"):
            process.joined = True
            self.around.brake.give_up_turn(self.agent)
        elif not process.has_ended():
            self.around.say(f"{self.name}: run {process.info.run} did not join within {self.around.limits.deadline:g} s")
            await self.end("deadline" if answer.get("current", True) else "superseded")

    async def look_whether_frozen(self) -> Change | None:
        """Once a second, by the daemon."""
        process = self.process
        if process is None or process.has_ended():
            self.freezing = FreezeWatch()
            return None
        change = self.freezing.look(is_stopped=process.is_stopped(), now=self.around.now())
        if change is not None:
            self.around.say(f"{self.name}: process {process.pid} {describe_freezing(change)}")
            await self.tell.freezing(change, process, seconds=self.freezing.seconds(change))
        return change

    async def end(self, asked: str) -> None:
        process = self.living()
        self.note = f"ending ({asked})"
        if not process.has_ended():
            await self.tell.step("run.aborting", process.info, asked=asked)
            settings = self.around.settings
            await process.stop(asked=asked, grace=settings.stop_grace, hard=settings.stop_hard)
        await self.conclude_process(process)

    async def conclude_process(self, process: AgentProcess) -> None:
        """Reports how it ended at once; the next step waits until nothing of it is left."""
        record = await process.ended()
        note, living = process.directory.note(), Living(process.info.run, process.info.generation)
        asked = process.directory.asked() or self.to_abort.get(process.info.run)
        asked = policy.who_asked(asked, wanted=self.entry.wanted if self.entry else None, living=living)
        ending = describe_ending(record, note, asked=asked, joined=process.joined, is_ours=process.is_ours)
        late = f"did not join within {self.around.limits.deadline:g} s" if asked == "deadline" else ""
        await self.conclude(process.info, ending, failure=classify(ending), message=late or describe_end(record, note), record=record)
        process.directory.settle()
        await process.gone()
        self.process = None
        self.to_abort.pop(process.info.run, None)

    async def conclude(
        self, info: RunInfo, ending: Ending, *, failure: str, message: str, record: ExitRecord | None = None, stage: str | None = None
    ) -> None:
        """The exit and what follows it go to the server in one report."""
        now = self.around.now()
        exit_ = Exit(info.run, now, ending.joined, policy.judge(ending), info.generation, ending.retry_after)
        self.past.add(exit_)
        if exit_.verdict == "faulty":
            self.around.brake.died(self.agent, now=now)
        self.around.brake.give_up_turn(self.agent)
        decision = self.decide(info, message, is_permanent=failure == "validation")
        self.apply(decision, info)
        self.around.say(
            f"{self.name}: run {info.run} {message}{f' ({ending.asked})' if ending.asked else ''}; {describe_decision(decision)}"
        )
        await self.tell.exit(
            info,
            record or ExitRecord(None, None, None, []),
            asked=ending.asked,
            stage=stage,
            failure=failure,
            message=message,
            decision=decision,
            verdict=exit_.verdict,
            answered=lambda: self.past.acknowledge(info.run),
        )

    def decide(self, info: RunInfo, message: str, *, is_permanent: bool) -> policy.Decision:
        return policy.decide(
            self.past.exits,
            wanted=self.is_wanted and self.closing is None,
            is_renewed=self.entry is not None and self.entry.generation > info.generation,
            is_permanent=is_permanent,
            limits=self.around.limits,
            now=self.around.now(),
            random=self.around.random(),
            last_words=message,
        )

    def apply(self, decision: policy.Decision, info: RunInfo) -> None:
        if self.entry is None or self.entry.generation != info.generation:
            return
        match decision:
            case policy.Restart(after):
                self.earliest = self.around.now() + after
            case policy.Exhausted():
                self.entry = replace(self.entry, exhausted=info.generation)

    async def start(self) -> None:
        if not self.around.link.is_up:
            self.note = "waiting for the server"
            await first_of(self.around.link.wait_up(), self.changed.wait())
            return
        if not await self.has_turn():
            return
        self.note = "asking the server for a run"
        async with self.around.launching:
            if isinstance(self.next_act(), Start) and (grant := await self.open_run()) is not None:
                await self.start_run(grant)

    async def has_turn(self) -> bool:
        """False after a wait: then it is time to look again."""
        around = self.around
        if around.brake.take_turn(self.agent, agents=around.agents(), limits=around.limits, now=around.now()):
            return True
        self.note = "waiting for its turn: more than half of the agents on this machine died together"
        await first_of(around.brake.released.wait(), self.changed.wait(), asyncio.sleep(1))
        return False

    async def open_run(self) -> Grant | None:
        """None when the server does not want it (any more), or cannot be asked."""
        generation = self.entry.generation if self.entry else 0
        attempt, request = policy.failed_attempts(self.past.exits) + 1, uuid.uuid4().hex
        try:
            answer = await self.around.link.ask("open_run", agent=self.agent, generation=generation, attempt=attempt, request=request)
            if "run" in answer:
                return Grant.parse(answer["run"])
            self.take_refusal(answer)
        except LinkLost:
            return None
        except BadMessage as error:
            self.around.say(f"{self.name}: the server's answer is not understood: {error}")
            self.earliest = self.around.now() + AFTER_REFUSAL
        return None

    def take_refusal(self, answer: dict[str, Any]) -> None:
        self.note = f"the server opens no run: {(answer.get('error') or {}).get('message', 'no reason given')}"
        if answer.get("agent"):
            self.update(AgentEntry.parse(answer["agent"]))
        self.earliest = max(self.earliest, self.around.now() + AFTER_REFUSAL)

    async def start_run(self, grant: Grant) -> None:
        info = RunInfo(grant.run, grant.agent, grant.generation, grant.room, grant.role, grant.harness)
        self.last_run, self.note, self.opened = grant.run, "checking harness and directory", info
        try:
            await self.prepare_and_launch(grant, info)
        finally:
            self.opened = None
            if self.process is None:
                self.to_abort.pop(info.run, None)

    async def prepare_and_launch(self, grant: Grant, info: RunInfo) -> None:
        try:
            prepared = await prepare(grant, self.around)
        except StartRefused as error:
            await self.conclude(info, Ending(), failure="validation", message=str(error), stage="validating")
            return
        await self.tell.step("run.validated", info)
        await self.tell.step("run.preparing", info)
        if asked := self.called_off(info):
            await self.conclude(info, Ending(asked=asked), failure="asked", message="called off before it was started")
            return
        await self.launch(info, prepared)

    def called_off(self, info: RunInfo) -> str | None:
        """Whether something changed while it was prepared."""
        if self.closing or info.run in self.to_abort:
            return self.closing or self.to_abort[info.run]
        return policy.why_stop(self.entry.wanted if self.entry else None, Living(info.run, info.generation)) or None

    async def launch(self, info: RunInfo, prepared: Prepared) -> None:
        try:
            process = await launch(info, prepared, around=self.around)
        except OSError as error:
            message = f"could not be started: {error.strerror or error}"
            await self.conclude(info, Ending(launch_error=message), failure="launch", message=message, stage="preparing")
            return
        self.process = process
        self.around.watch_log(process)
        await self.announce(process)

    async def announce(self, process: AgentProcess) -> None:
        """Tells its PID, once there is one: also that of a process whose daemon died in the middle of its start."""
        if await process.launched() is None:
            process.announced = True
            self.around.say(f"{self.name}: run {process.info.run} is running, PID {process.pid}")
            await self.tell.step("run.launched", process.info, pid=process.pid)

    async def settle(self) -> None:
        self.note = "stopped" if self.entry and self.entry.desired == "stopped" else "not running"
        self.around.brake.give_up_turn(self.agent)
        if self.entry is not None and self.known:
            await self.tell.stopped(self.entry, last_run=self.last_run, is_closing=self.closing is not None)
