"""`python -m bench.vouching`: 10,000 agents at work, vouched for by 100 daemons, beside 1,000 open connections that wait for work.

Prints the web process's share of a processor, its memory, and how long renewals take. Exit 1 when anybody was declared dead, or nearly:
all of them are alive the whole time, so a lease that ran out is the server's fault.
"""

import argparse
import asyncio
import contextlib
import os
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import psutil

from bench.figures import HEAD, line
from bench.population import Wanted, ask
from bench.server import Server
from bench.wire import Api, Message, Refused, Socket, open_socket

RENEW, SIGN_OF_LIFE = 30.0, 2.0
ANSWER_LIMIT, TRIES = 30.0, 5
AIM = 50


@dataclass
class Timings:
    heartbeat: list[float] = field(default_factory=list)
    renewal: list[float] = field(default_factory=list)
    opening: list[float] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)

    def begin_anew(self) -> None:
        self.heartbeat.clear()
        self.renewal.clear()


class Client:
    """One socket, and what is awaited on it."""

    path: str
    socket: Socket

    def __init__(self, api: Api, timings: Timings) -> None:
        self.api, self.timings = api, timings
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.living: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """As the real ones do: again after a pause, when it fails."""
        for number in range(TRIES):
            begun, self.heard = time.monotonic(), asyncio.Queue()
            try:
                async with asyncio.timeout(ANSWER_LIMIT):
                    self.socket = await open_socket(self.api, self.path, self.heard.put_nowait)
                    await self.introduce()
            except (OSError, Refused, TimeoutError) as error:
                self.timings.troubles[f"{self.path} {error!r} after {time.monotonic() - begun:.0f} s"] += 1
                self.close()
                await asyncio.sleep(random.uniform(0, 2**number))
            else:
                self.timings.opening.append(time.monotonic() - begun)
                return
        raise RuntimeError(f"{self.path} could not be opened {TRIES} times: {dict(self.timings.troubles)}")

    async def introduce(self) -> None:
        raise NotImplementedError

    async def expect(self, kind: str) -> Message:
        while (message := await self.heard.get())["type"] != kind:
            if message["type"] not in ("agent", "heartbeat"):
                raise Refused(f"expected {kind}, heard {message}")
        return message

    def keep(self, *lives: Awaitable[None]) -> None:
        self.living += [asyncio.ensure_future(life) for life in lives]

    async def ask_in_turns(self, question: Callable[[], Message], answer: str, samples: list[float]) -> None:
        """Every 30 s, and how long each answer took."""
        while True:
            begun = time.monotonic()
            self.socket.send(question())
            await self.expect(answer)
            samples.append(time.monotonic() - begun)
            await asyncio.sleep(RENEW)

    @property
    def is_lost(self) -> bool:
        return self.socket.transport.is_closing() or any(task.done() for task in self.living)

    def close(self) -> None:
        for task in self.living:
            task.cancel()
        with contextlib.suppress(AttributeError):
            self.socket.transport.abort()


class Daemon(Client):
    path = "/ws/machine/"

    def __init__(self, api: Api, timings: Timings, *, name: str, runs: list[dict[str, Any]]) -> None:
        super().__init__(api, timings)
        self.name, self.runs, self.instance = name, runs, os.urandom(16).hex()

    async def introduce(self) -> None:
        offer = {
            "slots": 1000,
            "allow_dirs": ["/tmp"],
            "harnesses": [{"name": "bench", "version": "1", "models": [], "ok": True, "error": ""}],
        }
        who = {"instance": self.instance, "machine": self.name, "version": "0.2.0", "platform": "bench"}
        living = [run | {"age": 60.0, "stopped": False} for run in self.runs]
        self.socket.send({"type": "hello", "protocol": 1, **who, **offer, "runs": living})
        await self.expect("welcome")
        self.socket.send({"type": "replayed"})
        told = await self.expect("snapshot")
        if {agent["run"] for agent in told["agents"]} != {run["run"] for run in self.runs}:
            raise RuntimeError(f"{self.name} was told of other runs than it has")
        self.keep(self.show_life(), self.ask_in_turns(self.vouch, "heartbeat", self.timings.heartbeat))

    async def show_life(self) -> None:
        while True:
            self.socket.send({"type": "alive"})
            await asyncio.sleep(SIGN_OF_LIFE)

    def vouch(self) -> Message:
        return {"type": "heartbeat", "runs": [run["run"] for run in self.runs]}


class WaitingAgent(Client):
    path = "/ws/agent/"

    def __init__(self, api: Api, timings: Timings, *, room: str, role: str) -> None:
        super().__init__(api, timings)
        self.room, self.role, self.incarnation = room, role, os.urandom(16).hex()

    async def introduce(self) -> None:
        who = {"room": self.room, "role": self.role, "incarnation": self.incarnation, "joined": False}
        self.socket.send({"type": "hello", "protocol": 1, **who})
        await self.expect("welcome")
        self.keep(self.ask_in_turns(lambda: {"type": "renew"}, "renewed", self.timings.renewal))


@dataclass
class Load:
    """A process's use of processor time and memory, between two looks."""

    pid: int

    def __enter__(self) -> Self:
        self.process = psutil.Process(self.pid)
        self.used, self.began = self.processor_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.share = (self.processor_time() - self.used) / (time.monotonic() - self.began)
        self.memory = self.process.memory_info().rss

    def processor_time(self) -> float:
        return sum(self.process.cpu_times()[:2])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.vouching", description=__doc__)
    parser.add_argument("--seconds", type=float, default=65, help="measured after everybody is connected (default: %(default)s)")
    parser.add_argument("--machines", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--per-machine", type=int, default=100, help="agents on each (default: %(default)s)")
    parser.add_argument("--waiting", type=int, default=1000, help="open connections that wait for work (default: %(default)s)")
    parser.add_argument("--rooms", type=int, default=100, help="(default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=10, help="connections that are being opened at the same time (default: %(default)s)")
    services = "services" if os.environ.get("DATABASE_URL") else "embedded"
    parser.add_argument("--stack", choices=["embedded", "services"], default=services, help="(default: %(default)s)")
    options = parser.parse_args()
    if options.seconds < RENEW + 5:
        parser.error(f"--seconds {options.seconds:g}: expected at least {RENEW + 5:g}, a whole round of renewals")
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.stack}", flush=True)
    with Server(options.stack) as server:
        sys.exit(0 if asyncio.run(measure(server, options)) else 1)


async def measure(server: Server, options: argparse.Namespace) -> bool:
    """True when nobody was lost."""
    wanted, timings = Wanted(options.machines, options.per_machine, options.waiting, options.rooms), Timings()
    begun = time.monotonic()
    made = await asyncio.to_thread(ask, wanted, environment=server.environment)
    print(f"made {options.machines * options.per_machine:,} agents at work in {time.monotonic() - begun:.0f} s", flush=True)
    clients = make_clients(server, made, timings)
    pid, begun = server.web_pid, time.monotonic()
    try:
        await open_all(clients, at_once=options.at_once)
        say_opened(clients, timings, seconds=time.monotonic() - begun, pids=(pid, server.web_pid))
        timings.begin_anew()
        with Load(server.web_pid) as load:
            await asyncio.sleep(options.seconds)
        found = await asyncio.to_thread(ask, "verdict", environment=server.environment)
        lost = Counter(client.path for client in clients if client.is_lost)
    finally:
        for client in clients:
            client.close()
    report(load, timings, pids=(pid, server.web_pid))
    return judge(found, lost)


def make_clients(server: Server, made: dict[str, Any], timings: Timings) -> list[Client]:
    person = Api(server.url, server.token)
    daemons = [
        Daemon(Api(server.url, machine["token"]), timings, name=machine["name"], runs=machine["runs"]) for machine in made["machines"]
    ]
    return [*daemons, *(WaitingAgent(person, timings, room=room, role=role) for room, role in made["waiting"])]


async def open_all(clients: Iterable[Client], *, at_once: int) -> None:
    turn = asyncio.Semaphore(at_once)

    async def open_one(client: Client) -> None:
        async with turn:
            await client.open()

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(open_one(client))


def say_opened(clients: list[Client], timings: Timings, *, seconds: float, pids: tuple[int, int]) -> None:
    kinds = Counter(client.path for client in clients)
    print(
        f"opened {kinds['/ws/machine/']} daemons and {kinds['/ws/agent/']} waiting agents in {seconds:.0f} s, web PID {pids[0]} → {pids[1]}"
    )
    for trouble, count in timings.troubles.most_common():
        print(f"  tried again {count} times: {trouble}")
    print(f"{HEAD}\n{line('connect → welcome, snapshot', timings.opening)}", flush=True)


def report(load: Load, timings: Timings, *, pids: tuple[int, int]) -> None:
    print(line("heartbeat → answer (100 agents)", timings.heartbeat))
    print(line("renew → renewed", timings.renewal))
    print(f"web: {load.share:.0%} of a core (aim: under {AIM} %), {load.memory / 2**20:.0f} MiB, PID {pids[0]} → {pids[1]}")


def judge(found: dict[str, float], lost: Counter[str]) -> bool:
    print(
        f"not alive: {found['not_live']:.0f}, lease over: {found['overdue']:.0f}, ever declared dead: {found['expired']:.0f}, "
        f"machines ever away: {found['machines_away']:.0f}, sockets lost: {sum(lost.values())} {dict(lost) or ''}"
    )
    print(f"shortest lease: {found['shortest']:.0f} s; quiet time: {max(0.0, found['quiet_left']):.0f} s left", flush=True)
    return not (found["not_live"] or found["overdue"] or found["expired"] or found["machines_away"] or lost)


if __name__ == "__main__":
    main()
