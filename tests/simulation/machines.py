"""Machines: the real daemon, supervisors and link around simulated disks and processes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from machines.daemon.daemon import Daemon, Ending
from machines.daemon.errors import StartRefused
from machines.daemon.link import ServerLink
from machines.daemon.messages import AgentEntry, Grant
from machines.daemon.outbox import Report
from machines.daemon.runs import ExitRecord, Note, RunInfo
from machines.daemon.supervisor import Supervisor
from machines.daemon.surroundings import Surroundings

from .network import Host
from .processes import OWNER, SimProcess
from .programs import Program

if TYPE_CHECKING:
    from .world import World

TERM, KILL = 15, 9
BEATS = {"heartbeat", "processes", "server loss", "log tail"}


class SimRun:
    """What a run's directory, its shim and its program are, as long as the machine has power. Survives every daemon."""

    def __init__(self, machine: "Machine", info: RunInfo, grant: Grant) -> None:
        self.machine, self.info, self.grant = machine, info, grant
        self.rng = machine.world.rng(f"run {machine.name} {len(machine.runs)}")
        self.program: Program | None = None
        self.asked_for: str | None = None
        self.is_settled = self.is_stopped = False
        self.stopped_at, self.said = 0.0, 0
        self.record: ExitRecord | None = None
        self.launched, self.ended, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.shim = SimProcess(f"shim of run {info.run}")

    def start(self) -> None:
        self.machine.world.checker.process_starts(self)
        self.shim.spawn(self.live())

    async def live(self) -> None:
        """The shim: starts the program, sees its end, ends what it left behind."""
        await asyncio.sleep(0.02 + 0.3 * self.rng.random())
        name = f"{self.grant.role}@{self.machine.name} #{self.machine.count()}"
        program = Program(
            self.machine.world,
            name=name,
            room=self.grant.room,
            role=self.grant.role,
            secret=self.grant.token,
            host=self.machine.host,
            run=self.info.run,
        )
        self.program = program
        task = program.start()
        self.launched.set()
        await asyncio.wait([task])
        if self.record is None:
            self.end(ExitRecord(program.exit_code if program.exit_code is not None else 1, None, None, ["last words"]))
        await asyncio.sleep(self.rng.choice([0.0, 0.0, 0.1, 3.0]))  # its grandchildren
        self.gone.set()

    def end(self, record: ExitRecord) -> None:
        if self.record is None:
            self.record = record
        if self.program is not None:
            self.program.process.kill()
        self.launched.set()
        self.ended.set()

    def signal(self, number: int) -> None:
        self.end(ExitRecord(None, number, None, ["killed"]))

    def freeze(self, *, stopped: bool) -> None:
        self.is_stopped, self.stopped_at = stopped, self.machine.world.loop.time()
        if self.program is not None:
            (self.program.process.going.clear if stopped else self.program.process.going.set)()

    def said_up_to(self, rng: Random) -> int:
        """The offset of its next line: sometimes again, sometimes after a gap."""
        self.said += rng.choice([0, 7, 7, 7, 100])
        return self.said

    def lose_power(self) -> None:
        if not self.gone.is_set():
            self.end(ExitRecord(None, None, None, [], lost=True, machine_lost=True))
            self.shim.kill()
            self.gone.set()


class SimAgentProcess:
    """The daemon's handle on a run: the same as machines.daemon.process.AgentProcess offers."""

    def __init__(self, run: SimRun, *, is_ours: bool) -> None:
        self.run, self.info, self.is_ours = run, run.info, is_ours
        self.started = asyncio.get_running_loop().time()
        self.joined = False
        self.announced = not is_ours and self.pid is not None
        self.child = None
        self.directory = SimpleNamespace(asked=lambda: run.asked_for, note=self.note, settle=self.settle, is_settled=lambda: run.is_settled)

    def note(self) -> Note:
        program = self.run.program
        if program is None or program.exit_code is None or self.run.rng.random() < 0.8:
            return Note()
        return Note(failure="rate_limited", retry_after=20 * self.run.rng.random(), message="429")

    def settle(self) -> None:
        self.run.is_settled = True

    @property
    def pid(self) -> int | None:
        return 1000 + self.info.run % 30_000 if self.run.launched.is_set() and self.run.program is not None else None

    def is_stopped(self) -> bool:
        return self.run.is_stopped and self.run.record is None

    def has_ended(self) -> bool:
        return self.run.record is not None

    async def launched(self) -> ExitRecord | None:
        await self.run.launched.wait()
        return self.run.record

    async def ended(self) -> ExitRecord:
        await self.run.ended.wait()
        assert self.run.record is not None
        return self.run.record

    async def gone(self) -> None:
        await self.run.gone.wait()

    async def stop(self, *, asked: str, grace: float, hard: float) -> None:
        self.run.asked_for = asked
        await self.launched()
        self.run.freeze(stopped=False)
        stubborn = self.run.rng.random() < 0.15
        await asyncio.sleep(grace if stubborn else self.run.rng.random())
        self.run.signal(KILL if stubborn else TERM)
        await self.gone()

    def kill_now(self) -> None:
        self.run.signal(KILL)


@dataclass
class Disk:
    """What survives the daemon, and a power cut."""

    reports: dict[str, Report] = field(default_factory=dict)
    seq: int = 0
    remembered: list[AgentEntry] = field(default_factory=list)


class SimReports:
    """machines.daemon.reports.Reports on a simulated disk."""

    def __init__(self, machine: "Machine") -> None:
        self.machine, self.disk = machine, machine.disk
        self.added, self.emptied = asyncio.Event(), asyncio.Event()
        self.answered: dict[str, Callable[[], None]] = {}

    async def put(self, report: str, *, key: str, answered: Callable[[], None] | None = None, **fields: Any) -> None:
        await asyncio.sleep(0.005 * self.machine.rng.random())  # a kill may come before it is stored, or just after
        if answered is not None:
            self.answered[key] = answered
        if key not in self.disk.reports:
            self.disk.seq += 1
            self.disk.reports[key] = Report(self.disk.seq, key, {"report": report, **fields, "happened_at": self.machine.wall_clock()})
        await asyncio.sleep(0.005 * self.machine.rng.random())
        self.emptied.clear()
        self.added.set()

    async def acknowledge(self, key: str) -> None:
        self.disk.reports.pop(key, None)
        if (answered := self.answered.pop(key, None)) is not None:
            answered()
        if not self.disk.reports:
            self.emptied.set()

    async def waiting(self, *, after: int, limit: int = 100) -> list[Report]:
        await asyncio.sleep(0)
        return [report for report in self.disk.reports.values() if report.seq > after][:limit]

    def kept_in_memory(self) -> list[Report]:
        return []

    async def size(self) -> int:
        return len(self.disk.reports)

    def close(self) -> None:
        """Nothing is open."""


@dataclass
class SimSurroundings(Surroundings):
    """The real ones; `prepare` and `launch` find their machine here."""

    machine: "Machine" = field(kw_only=True)


class SimDaemon(Daemon):
    """The real daemon without signals, threads and files."""

    def __init__(self, machine: "Machine") -> None:
        self.machine, self.say, self.name = machine, machine.say, machine.name
        self.options = SimpleNamespace(slots=5, allowed=[Path("/src")], version="0.2.0", server="http://chatroom.test")  # type: ignore[assignment]
        self.options.abort_on_server_loss = machine.aborts_on_server_loss  # type: ignore[misc]
        self.home = SimpleNamespace(instance=f"{machine.rng.getrandbits(64):016x}")  # type: ignore[assignment]
        self.started = asyncio.get_running_loop().time()
        self.reports = SimReports(machine)  # type: ignore[assignment]
        self.link = ServerLink(
            server="http://chatroom.test", token=machine.secret, reports=self.reports, say=self.say, hello=self.hello, handle=self.handle
        )
        self.around = SimSurroundings(
            link=self.link,
            reports=self.reports,
            book=SimpleNamespace(stamp=None),  # type: ignore[arg-type]
            runs=Path("/runs"),
            server=self.link.server,
            say=self.say,
            allowed=self.options.allowed,
            agents=lambda: sum(one.is_wanted for one in self.supervisors.values()),
            now=asyncio.get_running_loop().time,
            random=machine.rng.random,
            machine=machine,
        )
        self.supervisors: dict[int, Supervisor] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.offer = machine.offer
        self.logs = SimpleNamespace(collect=self.collect_logs)  # type: ignore[assignment]
        self.ending = asyncio.get_running_loop().create_future()
        self.remembered = []

    async def live(self) -> None:
        self.adopt_what_lives()
        background = [asyncio.create_task(self.keep(beat)) for beat in self.beats() if beat.name in BEATS]
        background.append(asyncio.create_task(self.stay_connected()))
        assert self.ending is not None
        ending: Ending = await self.ending
        await self.end(ending)
        self.machine.daemon_ended(ending)

    def adopt_what_lives(self) -> None:
        found: dict[int, list[SimAgentProcess]] = {}
        for run in self.machine.runs.values():
            if not run.is_settled:
                found.setdefault(run.info.agent, []).append(SimAgentProcess(run, is_ours=False))
        past = {entry.agent: entry for entry in self.machine.disk.remembered}
        for agent, processes in found.items():
            supervisor = self.supervise(agent)
            supervisor.recall(past.get(agent))
            supervisor.adopt(processes)  # type: ignore[arg-type]

    def collect_logs(self) -> list[dict[str, Any]]:
        """A line of each run now and then, some left out."""
        running = [run for run in self.machine.living if run.record is None and self.machine.rng.random() < 0.1]
        return [{"run": run.info.run, "offset": run.said_up_to(self.machine.rng), "skipped": 0, "text": "a line\n"} for run in running]

    def write_status(self) -> None:
        """Nobody reads it here."""

    def remember(self) -> None:
        self.machine.disk.remembered = [one.entry for one in self.supervisors.values() if one.entry is not None]

    def status(self) -> dict[str, Any]:
        return {"machine": self.name, "agents": [supervisor.describe() for supervisor in self.supervisors.values()]}


async def prepare(grant: Grant, around: Any) -> Any:
    """Stands in for the look at harness and directory."""
    machine: Machine = around.machine
    await asyncio.sleep(0.02 + 0.2 * machine.rng.random())
    if machine.is_broken and not machine.world.is_calm:
        raise StartRefused(f"harness {grant.harness}: program not found")
    return grant


async def launch(info: RunInfo, prepared: Grant, *, around: Any) -> SimAgentProcess:
    machine: Machine = around.machine
    if machine.rng.random() < 0.02 and not machine.world.is_calm:
        raise OSError(11, "Resource temporarily unavailable")
    run = SimRun(machine, info, prepared)
    machine.runs[f"{info.run}-{len(machine.runs)}"] = run
    run.start()
    await asyncio.sleep(0.01 * machine.rng.random())  # a daemon killed here has started a process it never spoke of
    return SimAgentProcess(run, is_ours=True)


class Machine:
    def __init__(self, world: "World", name: str, *, secret: str) -> None:
        self.world, self.name, self.secret = world, name, secret
        self.rng = world.rng(f"machine {name}")
        self.host = Host(name, rng=world.rng(f"host {name}"))
        self.disk = Disk()
        self.runs: dict[str, SimRun] = {}
        self.process = SimProcess(f"no daemon of {name}", host=self.host)
        self.process.is_alive = False
        self.daemon: SimDaemon | None = None
        self.has_power, self.is_broken, self.aborts_on_server_loss = True, False, self.rng.random() < 0.2
        self.offer = [{"name": "worker", "version": "1", "models": ["small", "large"], "ok": True, "error": ""}]
        self.counted = 0

    def count(self) -> int:
        self.counted += 1
        return self.counted

    def say(self, text: str) -> None:
        self.world.note(f"daemon of {self.name}", text.splitlines()[0] if text else "")
        if "unexpected error" in text:
            self.world.checker.violated("no unexpected errors", text)
        self.world.checker.check_refusal(text)

    def wall_clock(self) -> float:
        return self.world.loop.time() + self.host.clock_skew

    @property
    def living(self) -> list[SimRun]:
        return [run for run in self.runs.values() if not run.gone.is_set()]

    def start_daemon(self) -> None:
        if not self.has_power or self.process.is_alive:
            return
        self.process = SimProcess(f"daemon of {self.name}", host=self.host)
        self.process.spawn(self.run_daemon())

    async def run_daemon(self) -> None:
        self.daemon = SimDaemon(self)
        await self.daemon.live()

    def kill_daemon(self) -> None:
        self.daemon = None
        self.process.kill()

    def daemon_ended(self, ending: Ending) -> None:
        self.world.note(f"daemon of {self.name} ends", f"{ending.exit_code} {ending.message}")
        self.kill_daemon()

    def stop_daemon(self, *, keep_agents: bool) -> None:
        if self.daemon is not None and self.process.is_alive:
            self.daemon.finish(Ending(0 if keep_agents else 143, keep_agents=keep_agents))

    def freeze_daemon(self, *, stopped: bool) -> None:
        (self.process.going.clear if stopped else self.process.going.set)()

    def lose_power(self) -> None:
        self.has_power = False
        for wire in list(self.host.wires):
            wire.power_lost()
        for run in self.living:
            run.lose_power()
        self.kill_daemon()

    def forget_runs(self) -> None:
        """Its daemon's files are gone, but for its credentials."""
        self.runs, self.disk = {}, Disk()

    def boot(self) -> None:
        self.has_power = True
        self.start_daemon()


class MachineTime:
    """The module `time` as machines.daemon sees it: each machine has a wall clock of its own."""

    def __init__(self, world: "World") -> None:
        self.world, self.sleep = world, time.sleep

    def monotonic(self) -> float:
        return self.world.loop.time()

    def time(self) -> float:
        owner = OWNER.get()
        return self.world.loop.time() + (owner.host.clock_skew if owner is not None and owner.host is not None else 0.0)
