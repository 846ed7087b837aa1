"""The daemon of one machine: keeps a supervisor for each agent, and tells the server what is true here."""

import asyncio
import contextlib
import os
import platform
import signal
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines.daemon import policy, process, runs
from machines.daemon.cache import remember, remembered
from machines.daemon.errors import BadConfiguration, Refused
from machines.daemon.harnesses import Harness, describe
from machines.daemon.link import ServerLink
from machines.daemon.logs import LogStream, in_messages
from machines.daemon.messages import AgentEntry, BadMessage, Settings
from machines.daemon.process import AgentProcess
from machines.daemon.reports import Reports
from machines.daemon.state import Credentials, Home, Say
from machines.daemon.supervisor import Supervisor
from machines.daemon.surroundings import HarnessBook, Surroundings

LAST_WORDS = 3.0  # how long an ending daemon waits for the server to have heard everything
SERVER_LOSS = 30.0
WISHES = {"snapshot", "command", "agent", "agent_removed"}


@dataclass(frozen=True)
class Options:
    server: str
    name: str
    version: str
    allowed: list[Path]
    harnesses: Path
    slots: int = 5
    abort_on_server_loss: bool = False


@dataclass(frozen=True)
class Ending:
    """Why the daemon ends."""

    exit_code: int
    keep_agents: bool = False
    asked: str = "daemon_stop"
    message: str = ""


@dataclass(frozen=True)
class Beat:
    """What is done every so often."""

    every: Callable[[], float]
    act: Callable[[], Awaitable[None]]
    name: str


class Daemon:
    def __init__(self, options: Options, home: Home, credentials: Credentials, *, say: Say) -> None:
        self.options, self.home, self.say = options, home, say
        self.name = credentials.name
        self.started = time.monotonic()
        self.reports = Reports(home.outbox, say=say)
        self.link = ServerLink(
            server=options.server, token=credentials.token, reports=self.reports, say=say, hello=self.hello, handle=self.handle
        )
        self.logs = LogStream()
        self.around = Surroundings(
            link=self.link,
            reports=self.reports,
            book=HarnessBook(options.harnesses),
            runs=home.runs,
            server=options.server,
            say=say,
            allowed=options.allowed,
            watch_log=self.logs.watch,
            agents=lambda: sum(one.is_wanted for one in self.supervisors.values()),
        )
        self.supervisors: dict[int, Supervisor] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.offer: list[dict[str, Any]] = []
        self.described: dict[str, Harness] | None = None  # what the offer was made from
        self.ending: asyncio.Future[Ending] | None = None
        self.written: dict[str, Any] = {}
        self.remembered: list[AgentEntry] = []

    # Its life

    async def run(self) -> Ending:
        self.ending = asyncio.get_running_loop().create_future()
        self.install_signals()
        await self.read_harnesses()
        if self.around.book.broken:
            raise BadConfiguration(self.around.book.broken)
        self.adopt_what_lives()
        background = [asyncio.create_task(self.keep(beat)) for beat in self.beats()]
        background.append(asyncio.create_task(self.stay_connected()))
        try:
            ending = await self.ending
            await self.end(ending)
        finally:
            for task in [*background, *self.tasks.values()]:
                task.cancel()
            await asyncio.gather(*background, *self.tasks.values(), return_exceptions=True)
            self.write_status()
            self.reports.close()
        return ending

    async def stay_connected(self) -> None:
        try:
            await self.link.run()
        except Refused as refused:
            asked = "daemon_stop" if self.link.was_welcome else ""
            self.finish(Ending(refused.exit_code, keep_agents=not asked, message=str(refused)))

    def finish(self, ending: Ending) -> None:
        if self.ending is not None and not self.is_ending:
            self.ending.set_result(ending)

    @property
    def is_ending(self) -> bool:
        return self.ending is not None and self.ending.done()

    async def end(self, ending: Ending) -> None:
        """Agents first, then what is to be told, then the goodbye."""
        if ending.message:
            self.say(ending.message)
        if not ending.keep_agents:
            for supervisor in self.supervisors.values():
                supervisor.close(ending.asked)
            await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            if self.link.is_up and await self.reports.size():
                async with asyncio.timeout(LAST_WORDS):
                    await self.reports.emptied.wait()
        await self.link.say_goodbye(keep_agents=ending.keep_agents)

    def install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self.abort_everything)
        loop.add_signal_handler(
            signal.SIGUSR1, lambda: self.finish(Ending(0, keep_agents=True, message="ending alone: the agents live on"))
        )
        loop.add_signal_handler(signal.SIGTERM, lambda: self.finish(Ending(143, message="ending: the agents are stopped")))
        loop.add_signal_handler(signal.SIGINT, self.interrupted)

    def interrupted(self) -> None:
        if self.is_ending:
            self.say("ending at once")
            for supervisor in self.supervisors.values():
                if supervisor.process is not None:
                    supervisor.process.kill_now()
            os._exit(130)
        self.finish(Ending(130, message="ending: the agents are stopped (once more: at once)"))

    def abort_everything(self) -> None:
        """SIGHUP: every run ends, the configuration is read again; this process stays."""
        self.say("aborting every run, reading the configuration again")
        for supervisor in self.supervisors.values():
            supervisor.abort(asked="abort")
        self.around.book.stamp = None

    # What lives

    def adopt_what_lives(self) -> None:
        """What an earlier daemon left: living processes are taken over, ends it did not report are reported."""
        found: dict[int, list[AgentProcess]] = {}
        for directory in runs.unsettled(self.home.runs):
            info = directory.info(say=self.say)
            if info is None and not directory.is_held():
                directory.remove()
            elif info is not None:
                found.setdefault(info.agent, []).append(process.adopt(directory, info))
        past = remembered(self.home.path, say=self.say)
        for agent, processes in found.items():
            supervisor = self.supervise(agent)
            supervisor.recall(past.get(agent))
            supervisor.adopt(processes)
            for one in processes:
                self.say(f"{supervisor.name}: run {one.info.run} {'ended meanwhile' if one.has_ended() else f'lives on, PID {one.pid}'}")

    def supervise(self, agent: int) -> Supervisor:
        if agent not in self.supervisors:
            supervisor = self.supervisors[agent] = Supervisor(agent, self.around)
            self.tasks[agent] = asyncio.create_task(supervisor.run())
            self.tasks[agent].add_done_callback(lambda task: self.forget(agent, task))
        return self.supervisors[agent]

    def forget(self, agent: int, task: "asyncio.Task[None]") -> None:
        if self.tasks.get(agent) is task:
            del self.tasks[agent], self.supervisors[agent]

    # What the server says

    async def handle(self, message: dict[str, Any]) -> None:
        try:
            await self.take(message)
        except BadMessage as error:
            self.say(f"the server's {message['type']} is not understood: {error}")

    async def take(self, message: dict[str, Any]) -> None:
        if self.is_ending and message["type"] in WISHES:
            return  # for the next daemon: this one starts nothing any more
        match message["type"]:
            case "welcome":
                settings = message.get("settings") or {}
                self.around.settings = Settings.parse(settings)
                self.around.limits = policy.Limits().changed(settings)
                for one in self.supervisors.values():
                    one.freezing.say_again()
            case "snapshot":
                self.take_snapshot(message.get("agents") or [])
                await self.send_heartbeat()
            case "command":
                await self.take_command(message)
            case "agent":
                self.take_agent(message.get("agent") or {})
            case "agent_removed":
                if (supervisor := self.supervisors.get(message.get("agent") or 0)) is not None:
                    supervisor.update(None)
            case "heartbeat":
                self.end_superseded(message.get("superseded") or [])
            case "rejected":
                self.take_rejection(message)
        self.remember()

    def take_snapshot(self, agents: list[dict[str, Any]]) -> None:
        present = {self.take_agent(one, is_snapshot=True) for one in agents}
        for agent, supervisor in list(self.supervisors.items()):
            if agent not in present:
                supervisor.update(None)

    def take_agent(self, content: dict[str, Any], *, is_snapshot: bool = False) -> int | None:
        """Its number. An entry that is not understood leaves its agent as it is: nothing is ended for a misunderstanding."""
        try:
            entry = AgentEntry.parse(content)
        except BadMessage as error:
            self.say(f"agent {content.get('agent')} is not understood: {error}")
            return content.get("agent")
        self.supervise(entry.agent).update(entry, is_snapshot=is_snapshot)
        return entry.agent

    async def take_command(self, message: dict[str, Any]) -> None:
        number, act = int(message.get("command") or 0), message.get("act")
        match act:
            case "ping":
                await self.link.hint({"type": "result", "command": number, "data": {}})
            case "status":
                data = {**self.status(), "outbox": await self.reports.size()}
                await self.link.hint({"type": "result", "command": number, "data": data})
            case "abort_run":
                await self.abort_run(number, int(message.get("run") or 0))
            case "start_agent" | "restart_agent" | "stop_agent":
                self.take_agent(message.get("agent") or {})
                if act != "stop_agent" and (message.get("agent") or {}).get("mode") == "task":
                    await self.refuse(number, "this daemon runs agents in loop mode only: choose mode loop")
            case _:
                await self.refuse(number, f"this daemon does not know {act}: it has version {self.options.version}")

    async def abort_run(self, number: int, run: int) -> None:
        if not any(supervisor.abort(asked="abort", run=run) for supervisor in self.supervisors.values()):
            key = f"command:{number}:completed"
            await self.reports.put("command.completed", key=key, command=number, message=f"run {run} had already ended")

    async def refuse(self, number: int, message: str) -> None:
        await self.reports.put("command.failed", key=f"command:{number}:failed", command=number, message=message)

    def end_superseded(self, runs_: list[int]) -> None:
        for supervisor in self.supervisors.values():
            for run in runs_:
                supervisor.abort(asked="superseded", run=run)

    def take_rejection(self, message: dict[str, Any]) -> None:
        """The server does not know the run as one that may be launched: then it must not run."""
        parts = str(message.get("key")).split(":")
        if len(parts) == 3 and parts[0] == "run" and parts[2] == "launched":
            self.end_superseded([int(parts[1])])

    # What the server is told

    def hello(self) -> dict[str, Any]:
        return {
            "instance": self.home.instance,
            "machine": self.name,
            "version": self.options.version,
            "platform": f"{platform.system()} {platform.machine()}",
            **self.describe_offer(),
            "runs": [run for supervisor in self.supervisors.values() for run in supervisor.describe_runs()],
        }

    def describe_offer(self) -> dict[str, Any]:
        return {"slots": self.options.slots, "allow_dirs": [str(path) for path in self.options.allowed], "harnesses": self.offer}

    def beats(self) -> list[Beat]:
        return [
            Beat(lambda: self.around.settings.heartbeat_interval, self.send_heartbeat, "heartbeat"),
            Beat(lambda: 1.0, self.look_at_processes, "processes"),
            Beat(lambda: 1.0, self.send_logs, "log tail"),
            Beat(lambda: 5.0, self.offer_changes, "harnesses"),
            Beat(lambda: 3600.0, self.remove_old_runs, "old runs"),
            Beat(lambda: 1.0, self.watch_server_loss, "server loss"),
        ]

    async def keep(self, beat: Beat) -> None:
        while True:
            await asyncio.sleep(beat.every())
            try:
                await beat.act()
            except OSError as error:  # a full disk, a file that cannot be read: said, and tried again
                self.say(f"{beat.name}: {error}")
            except Exception:  # whatever it is: without its heartbeat this machine's agents would be declared dead
                self.say(f"{beat.name}: unexpected error, going on\n{traceback.format_exc()}")

    async def send_heartbeat(self) -> None:
        vouched = [run for supervisor in self.supervisors.values() if (run := supervisor.vouched()) is not None]
        await self.link.hint({"type": "heartbeat", "runs": vouched})

    async def look_at_processes(self) -> None:
        changes = [await supervisor.look_whether_frozen() for supervisor in list(self.supervisors.values())]
        if "continued" in changes:
            await self.send_heartbeat()  # its lease was cut: it must not wait for the next beat
        self.write_status()

    async def send_logs(self) -> None:
        if self.link.is_up:
            for message in in_messages(self.logs.collect()):
                await self.link.hint(message)

    async def offer_changes(self) -> None:
        """The form in the browser shows what this machine really offers, also when a program was installed a moment ago."""
        before = self.offer
        await self.read_harnesses()
        if self.offer != before:
            await self.link.hint({"type": "harnesses", **self.describe_offer()})

    async def read_harnesses(self) -> None:
        book = self.around.book
        if await asyncio.to_thread(book.read) and book.broken:
            self.say(f"{book.broken}; what was read before stays in force for what runs")
        known = {entry["name"]: entry for entry in self.offer}
        entries = list(book.entries.values())
        problems = await asyncio.to_thread(lambda: {entry.name: entry.problem() for entry in entries})
        same = len(known) == len(problems) and all(known.get(name, {}).get("error") == problem for name, problem in problems.items())
        if not same or book.entries is not self.described:
            self.offer = list(await asyncio.gather(*(asyncio.to_thread(describe, entry) for entry in entries)))
            self.described = book.entries

    async def remove_old_runs(self) -> None:
        await asyncio.to_thread(runs.remove_old, self.home.runs, older_than=self.around.settings.log_retention)

    async def watch_server_loss(self) -> None:
        since = self.link.lost_since
        if self.options.abort_on_server_loss and since is not None and time.monotonic() - since > SERVER_LOSS:
            for supervisor in self.supervisors.values():
                supervisor.abort(asked="server_loss")

    # For `daemon_status`

    def status(self) -> dict[str, Any]:
        return {
            "machine": self.name,
            "server": self.options.server,
            "connected": self.link.is_up,
            "version": self.options.version,
            "uptime": round(time.monotonic() - self.started, 1),
            "load": os.getloadavg()[0],
            "agents": [supervisor.describe() for supervisor in self.supervisors.values()],
        }

    def write_status(self) -> None:
        status = self.status()
        steady = {name: value for name, value in status.items() if name not in {"uptime", "load"}}
        if steady != self.written:
            self.written = steady
            self.home.write_status(status)

    def remember(self) -> None:
        """For a daemon that returns before its server does."""
        entries = [supervisor.entry for supervisor in self.supervisors.values() if supervisor.entry is not None]
        if entries != self.remembered:
            self.remembered = entries
            remember(self.home.path, entries, say=self.say)
