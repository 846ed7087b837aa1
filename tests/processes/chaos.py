"""Chaos on the started program: every part is killed and frozen at random while many tasks travel through three roles on three machines.

What is counted at the end comes from outside: the messages people see, the process table, the rendered page.
"""

import contextlib
import http.client
import itertools
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.processes.acts import events, messages, new_room, room_status
from tests.processes.browser import Browser
from tests.processes.program import Command, Program, free_port, is_alive, wait_until

AGENT = Path(__file__).parent / "chaos_agent.sh"
ROLES = ["planner", "builder", "reviewer"]
SERVER_PARTS = ["web", "worker", "sweep", "valkey"]
TARGETS = [*SERVER_PARTS, "daemon", "agent", "waiting command"]
SETTINGS = {
    "CHATROOM_HEARTBEAT_INTERVAL": "2",
    "CHATROOM_HEARTBEAT_TTL": "30",
    "CHATROOM_DAEMON_HEARTBEAT_INTERVAL": "2",
    "CHATROOM_SWEEP_INTERVAL": "1",
    "CHATROOM_PULSE_INTERVAL": "1",
    "CHATROOM_PULSE_STALE_AFTER": "4",
    "CHATROOM_RESTART_DELAY": "0.5",
    "CHATROOM_RECONNECT_WITHIN": "0.5",
    "CHATROOM_PART_RESTART_DELAY": "0.2",
    "CHATROOM_PART_RESTART_LIMIT": "1",
    # The same task is hit again and again on purpose: it must not count as poison.
    "CHATROOM_MAX_CRASHES": "1000",
}
SETTLE_LIMIT, RECOVERY_LIMIT, PATIENCE = 240.0, 120.0, 5.0


@dataclass
class Report:
    seed: int
    sent: int = 0
    ended_once: int = 0
    doubled: int = 0
    lost: int = 0
    orphans: int = 0
    crowded: int = 0
    differing: list[str] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    frozen: Counter[str] = field(default_factory=Counter)
    claims_hit: int = 0
    helped: int = 0
    recovery: float = 0.0
    recovered: str = ""
    settled: float = 0.0

    @property
    def is_good(self) -> bool:
        return self.ended_once == self.sent and not (self.doubled or self.lost or self.orphans or self.crowded or self.differing)

    def lines(self) -> Iterator[str]:
        yield f"seed {self.seed}: {self.sent} tasks sent, {self.ended_once} ended once, {self.doubled} doubled, {self.lost} lost"
        yield f"orphan processes {self.orphans}, agents seen with two processes {self.crowded}"
        yield f"panel differs from the database in {self.differing or 'nothing'}"
        yield f"kills {dict(self.hits)}, freezes {dict(self.frozen)}, {self.claims_hit} of them hit a claim"
        yield f"longest recovery {self.recovery:.1f} s ({self.recovered}), settled {self.settled:.1f} s after the last fault"
        yield f"a person restarted {self.helped} agents that had died too often for anybody but a person to start them"


class Machine:
    """A daemon with a home of its own, started again after each kill, as an init system does."""

    def __init__(self, program: Program, name: str) -> None:
        self.program, self.name = program, name
        self.folder = program.folder / name
        (self.folder / "work").mkdir(parents=True)
        self.harnesses = self.folder / "harnesses.toml"
        self.harnesses.write_text(f'[harnesses.chaos]\ncommand = ["{AGENT}"]\n')
        self.command: Command | None = None

    def start(self) -> None:
        words = ["--name", self.name, "--home", str(self.folder / "home"), "--allow-dir", str(self.folder / "work")]
        self.command = self.program.start_raw("agent_daemon", *words, "--harnesses", str(self.harnesses), "--server", self.program.url)

    @property
    def pid(self) -> int:
        return self.command.pid if self.command and self.command.returncode is None else 0


class Chaos:
    def __init__(
        self, program: Program, *, seed: int, minutes: float, tasks: int, rooms: int = 4, least: int = 5, pause: float = 1.0
    ) -> None:
        self.program, self.random = program, random.Random(seed)
        self.seconds, self.tasks, self.room_count, self.least, self.pause = minutes * 60, tasks, rooms, least, pause
        self.report = Report(seed, sent=tasks)
        self.machines = [Machine(program, f"machine-{number}-{free_port()}") for number in (1, 2, 3)]
        self.rooms: list[str] = []
        self.over = threading.Event()
        self.recoveries: list[threading.Thread] = []
        self.frozen_pids: set[int] = set()

    def run(self) -> Report:
        """Whatever interrupts it, nothing that it started is left running."""
        try:
            self.browser = Browser.of_owner(self.program)
            self.prepare()
            self.play()
            self.judge()
        finally:
            self.over.set()
            self.end()
        return self.report

    def play(self) -> None:
        works = (self.send_all, self.help_the_exhausted, self.count_processes)
        threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in works]
        for thread in threads:
            thread.start()
        try:
            self.break_things()
        finally:
            for pid in list(self.frozen_pids):
                self.thaw(pid)
        threads[0].join()
        quiet_since = time.monotonic()
        try:
            wait_until(self.is_settled, within=SETTLE_LIMIT, what="every task ended, every agent waits")
        except AssertionError as error:
            self.report.differing.append(f"not settled: {error}")
        self.report.settled = time.monotonic() - quiet_since
        self.over.set()
        for thread in [*threads, *self.recoveries]:
            thread.join()

    # the stage

    def prepare(self) -> None:
        for machine in self.machines:
            machine.start()
        wait_until(lambda: len(self.connected()) == len(self.machines), within=30, what="three machines are connected")
        for number in range(self.room_count):
            room = new_room(self.program, f"Chaos {number}", team=ROLES)
            self.rooms.append(room)
            for place, role in enumerate(ROLES):
                machine = self.machines[(number + place) % len(self.machines)]
                configuration = {"kind": "remote", "machine": machine.name, "harness": "chaos", "directory": str(machine.folder / "work")}
                answer = self.program.api("PUT", f"rooms/{room}/agents/{role}", configuration)
                assert answer.status == 200, answer.text

    def connected(self) -> list[str]:
        found = self.program.api("GET", "machines").json()["machines"]
        return [machine["name"] for machine in found if machine["status"] == "connected"]

    def send_all(self) -> None:
        """Spread over the time, each until it is accepted: its key makes a repeat the same message."""
        gap = self.seconds * 0.8 / self.tasks
        for number in range(self.tasks):
            room, job = self.rooms[number % len(self.rooms)], f"job-{number}"
            while not self.over.is_set() and not self.try_to(partial(self.send, room, job)):
                time.sleep(0.2)
            time.sleep(gap)

    def send(self, room: str, job: str) -> bool:
        answer = self.program.api("POST", f"rooms/{room}/messages", {"text": job}, Idempotency_Key=f"{self.report.seed}-{job}")
        return answer.status == 201

    def help_the_exhausted(self) -> None:
        """The person whom DEAD (UNRECOVERABLE) asks for: so many kills are more than any policy lets pass."""
        while not self.over.wait(1.0):
            for room in self.rooms:
                for agent in self.agents(room):
                    if agent["status"] == "dead_failed_revive" and self.restart(room, agent["role"]):
                        self.report.helped += 1

    def restart(self, room: str, role: str) -> bool:
        return self.try_to(lambda: self.program.api("POST", f"rooms/{room}/agents/{role}/restart").status == 202)

    def agents(self, room: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        self.try_to(lambda: found.extend(room_status(self.program, room)["agents"]))
        return found

    @staticmethod
    def try_to(act: Callable[[], Any]) -> bool:
        """The server may be away just now, and whoever was to be hit may have ended by itself."""
        try:
            return bool(act())
        except (OSError, psutil.Error, http.client.HTTPException, AssertionError, ValueError, KeyError):
            return False

    # the faults

    def break_things(self) -> None:
        """Rounds that hit each target once, in a random order; some hits freeze. Goes on until each was killed often enough."""
        begun = time.monotonic()
        rounds = (self.random.sample(TARGETS, len(TARGETS)) for _ in itertools.count())
        for target in itertools.chain.from_iterable(rounds):
            spent = time.monotonic() - begun
            if spent >= self.seconds and (min(self.report.hits[name] for name in TARGETS) >= self.least or spent >= 2 * self.seconds):
                return
            freeze = target in ("daemon", "agent", "web") and self.random.random() < 1 / 4
            act = self.freeze if freeze else self.kill
            limit = time.monotonic() + PATIENCE
            while not self.try_to(partial(self.hit, act, target)) and time.monotonic() < limit:
                time.sleep(0.2)  # nobody is there to be hit just now
            time.sleep(self.random.uniform(0.3, 1.7) * self.pause)

    @staticmethod
    def hit(act: Callable[[str], None], target: str) -> bool:
        act(target)
        return True

    def kill(self, target: str) -> None:
        if target == "valkey" and not self.program.has_valkey:
            self.program.broker.kill()
            self.note("valkey", lambda: True)
        elif target in SERVER_PARTS:
            old = self.program.kill_part(target)
            self.note(target, lambda: self.is_restarted(target, old))
        elif target == "daemon":
            self.kill_daemon()
        else:
            self.kill_agent(target)

    def is_restarted(self, part: str, old: int) -> bool:
        pid = self.program.part_pid(part)
        return pid != old and is_alive(pid) and (part != "web" or self.program.is_ready())

    def kill_daemon(self) -> None:
        machine = self.random.choice(self.machines)
        if not machine.pid:
            return
        os.kill(machine.pid, signal.SIGKILL)
        assert machine.command is not None
        machine.command.wait()
        delay = self.random.uniform(0, 3)
        self.note("daemon", lambda: machine.name in self.connected())
        time.sleep(delay)
        machine.start()

    def kill_agent(self, target: str) -> None:
        """The program itself, or the waiting command that it runs."""
        room, agent = self.any_agent()
        pid = int((agent["run"] or {}).get("pid") or 0)
        victims = [pid] if target == "agent" else [child.pid for child in psutil.Process(pid).children(recursive=True)]
        for victim in victims[:1]:
            os.kill(victim, signal.SIGKILL)
            self.report.claims_hit += agent["status"] == "working"
            self.note(target, lambda: self.is_back(room, agent["role"]))

    def any_agent(self) -> tuple[str, dict[str, Any]]:
        everybody = [(room, agent) for room in self.rooms for agent in self.agents(room) if (agent["run"] or {}).get("pid")]
        alive = [(room, agent) for room, agent in everybody if agent["status"] in ("ready", "working")]
        busy = [(room, agent) for room, agent in alive if agent["status"] == "working"]
        if not alive:
            raise KeyError("nobody is there to be hit")
        return self.random.choice(busy or alive)

    def is_back(self, room: str, role: str) -> bool:
        return any(agent["role"] == role and agent["status"] in ("ready", "working") for agent in self.agents(room))

    def freeze(self, target: str) -> None:
        """Stopped for a while, and let go on."""
        if target == "agent":
            _, agent = self.any_agent()
            pid = int(agent["run"]["pid"])
            self.report.claims_hit += agent["status"] == "working"
        else:
            pid = self.program.part_pid("web") if target == "web" else self.random.choice(self.machines).pid
        if pid:
            os.kill(pid, signal.SIGSTOP)
            self.frozen_pids.add(pid)
            self.report.frozen[target] += 1
            time.sleep(0 if target == "agent" else self.random.uniform(0.5, 4))
            thaw = threading.Timer(self.random.uniform(2, 13) if target == "agent" else 0, self.thaw, [pid])
            thaw.start()
            self.recoveries.append(thaw)

    def thaw(self, pid: int) -> None:
        self.frozen_pids.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def note(self, target: str, is_back: Callable[[], bool]) -> None:
        """Counts the kill, and measures how long it takes until what was hit is there again."""
        self.report.hits[target] += 1
        begun = time.monotonic()

        def measure() -> None:
            time.sleep(0.3)  # what was hit is still shown as it was: its end has to be noticed first
            while not self.try_to(is_back) and time.monotonic() - begun < RECOVERY_LIMIT and not self.over.is_set():
                time.sleep(0.2)
            if (took := time.monotonic() - begun) > self.report.recovery:
                self.report.recovery, self.report.recovered = took, target

        thread = threading.Thread(target=measure, name=f"recovery of {target}", daemon=True)
        thread.start()
        self.recoveries.append(thread)

    # the judgement

    def is_settled(self) -> bool:
        def look() -> bool:
            for room in self.rooms:
                status = room_status(self.program, room)
                if status["tasks"] or any(agent["status"] not in ("ready", "offline") for agent in status["agents"]):
                    return False
            return True

        return self.try_to(look)

    def count_processes(self) -> None:
        """At most one live process per agent, ever: leaders of runs by what their environment says."""
        while not self.over.wait(0.5):
            seen = Counter(found for process in psutil.process_iter() if (found := self.run_of(process)))
            self.report.crowded += sum(count > 1 for count in seen.values())

    def run_of(self, process: psutil.Process) -> str:
        """Whose program it is, for the leader of a run of ours; nothing for every other process."""
        try:
            if process.cmdline()[-1:] != [str(AGENT)] or process.status() == psutil.STATUS_ZOMBIE:
                return ""
            environment, parent = process.environ(), process.parent()
            is_leader = parent is not None and parent.cmdline()[-1:] != [str(AGENT)]
            is_ours = environment.get("CHATROOM_SERVER") == self.program.url and is_leader
            return f"{environment['CHATROOM_ROOM']}/{environment['CHATROOM_ROLE']}" if is_ours else ""
        except (psutil.Error, KeyError):
            return ""

    def judge(self) -> None:
        done = Counter[str]()
        for room in self.rooms:
            done.update(message["text"].split()[0] for message in self.all_messages(room) if message["kind"] == "result")
            accepted = Counter(event["subject_id"] for event in events(self.program, room, subject="task", trigger="complete_task"))
            self.report.doubled += sum(count > 1 for count in accepted.values())
            self.compare_panel(room)
        wanted = {f"job-{number}" for number in range(self.tasks)}
        self.report.ended_once = sum(done[job] == 1 for job in wanted)
        self.report.doubled += sum(done[job] > 1 for job in wanted)
        self.report.lost = sum(done[job] == 0 for job in wanted)

    def all_messages(self, room: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = messages(self.program, room)
        while more := self.program.api("GET", f"rooms/{room}/messages?after={found[-1]['id']}&limit=500").json()["messages"]:
            found += more
        return found

    def compare_panel(self, room: str) -> None:
        """The status that the page says of each agent, against the API's."""
        page = self.browser.get(f"/rooms/{room}/")
        shown = dict(re.findall(r'id="agent-([\w-]+)" class="agent[^"]*" data-status="(\w+)"', page))
        stored = {agent["role"]: agent["status"] for agent in room_status(self.program, room)["agents"]}
        if shown != stored:
            self.report.differing.append(f"{room}: the page says {shown}, the database {stored}")

    def end(self) -> None:
        """Daemons first, in order, then the server; whatever of theirs still lives is an orphan."""
        pids = [machine.pid for machine in self.machines if machine.pid]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for machine in self.machines:
            if machine.command is not None:
                machine.command.wait(within=25)
        self.program.stop()
        self.report.orphans = sum(bool(self.is_of_ours(process)) for process in psutil.process_iter())

    def is_of_ours(self, process: psutil.Process) -> bool:
        try:
            words = " ".join([*process.cmdline(), process.environ().get("CHATROOM_SERVER", "")])
        except psutil.Error:
            return False
        return process.pid != os.getpid() and (self.program.url in words or str(self.program.home) in words)
