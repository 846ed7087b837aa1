"""`make bench`: the speed of the main path, beside Procrastinate's. docs/benchmarks.md says what is measured and how."""

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
from functools import partial
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import load
from bench.browser import measure_browser
from bench.commands import WAYS, measure_lines, measure_starts
from bench.figures import HEAD, line, ratio
from bench.fleet import Fleet
from bench.peer import Peer
from bench.server import Database, Server
from bench.statements import count_statements

STACKS = {"embedded": "SQLite + embedded Valkey", "services": "PostgreSQL + Redis"}
PARTS = ["statements", "latency", "burst", "lines", "starts", "browser"]
WARM_UP, TURN = 50, 30
VOLLEYS, AGENTS = 20, 50
STARTS, SIGHTS, SIGHTS_A_SECOND = 20, 60, 5


def main() -> None:
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers must end too
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; 50 agents wait: 10 rooms of 5 roles, a socket each", flush=True)
    if "statements" in options.parts:
        print(f"\n{count_statements()}", end="")
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(name)) for name in options.stacks]
        database = stack.enter_context(Database())
        asyncio.run(measure(options, servers=servers, database=database))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=list(STACKS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--count", type=int, default=300, help="messages (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20, help="messages a second (default: %(default)s)")
    parser.add_argument("--burst", type=int, default=1000, help="messages of the burst (default: %(default)s)")
    return parser.parse_args()


async def measure(options: argparse.Namespace, *, servers: list[Server], database: Database) -> None:
    fleets = {server.stack: Fleet(server.url, server.token) for server in servers}
    peer = Peer(database.url)
    try:
        await peer.start()
        for fleet in fleets.values():
            await fleet.start()
        targets: list[Fleet | Peer] = [*fleets.values(), peer]
        for target in targets:
            await load.steady(target, count=WARM_UP, rate=options.rate)
            take(target)
        gc.collect()
        gc.freeze()
        if "latency" in options.parts:
            await measure_latency(options, fleets=fleets, peer=peer)
        if "burst" in options.parts:
            await measure_burst(options, servers={server.stack: server for server in servers}, fleets=fleets, peer=peer)
        for server in servers:
            await measure_programs(options, server=server, fleet=fleets[server.stack])
    finally:
        for fleet in fleets.values():
            fleet.stop()
        await peer.stop()


def take(target: Fleet | Peer) -> list[float]:
    return target.take() if isinstance(target, Peer) else target.take_timings().latencies()


async def measure_latency(options: argparse.Namespace, *, fleets: dict[str, Fleet], peer: Peer) -> None:
    print(f"\nmessage sent → task on the agent's socket, {options.count} at {options.rate:g} a second\n{HEAD}")
    targets: list[Fleet | Peer] = [*fleets.values(), peer]
    turns = [partial(steady_turn, target, rate=options.rate) for target in targets]
    await load.interleaved(turns, count=options.count, turn=TURN)
    theirs = peer.take()
    for name, fleet in fleets.items():
        ours = take(fleet)
        print(line(STACKS[name], ours))
        print(ratio("  × Procrastinate", ours, theirs))
    print(line("Procrastinate: defer → job starts", theirs), flush=True)


async def steady_turn(target: Fleet | Peer, count: int, *, rate: float) -> None:
    await load.steady(target, count=count, rate=rate)


async def measure_burst(options: argparse.Namespace, *, servers: dict[str, Server], fleets: dict[str, Fleet], peer: Peer) -> None:
    print(f"\nburst: {AGENTS} messages at once to {AGENTS} agents that wait → their tasks heard, {VOLLEYS} times")
    for name, fleet in fleets.items():
        print(f"{STACKS[name]:38} {await load.volleys(fleet, count=VOLLEYS, size=AGENTS):8.0f} tasks a second", flush=True)
        take(fleet)
    print(f"{'Procrastinate: deferred, started':38} {await load.volleys(peer, count=VOLLEYS, size=AGENTS):8.0f} jobs a second", flush=True)
    peer.take()
    print(f"\nburst of {options.burst} messages from 20 senders: sent, claimed, received, completed")
    for name, fleet in fleets.items():
        web = psutil.Process(servers[name].web_pid)
        before = sum(web.cpu_times()[:2])
        rate = await load.burst(fleet, count=options.burst)
        cost = 1000 * (sum(web.cpu_times()[:2]) - before) / options.burst
        print(f"{STACKS[name]:38} {rate:8.0f} tasks a second, {cost:.1f} ms of the web process's CPU each", flush=True)
        take(fleet)
    print(f"{'Procrastinate: deferred, started':38} {await load.burst(peer, count=options.burst):8.0f} jobs a second", flush=True)
    peer.take()


async def measure_programs(options: argparse.Namespace, *, server: Server, fleet: Fleet) -> None:
    """The same seen by real programs, while the fleet goes on waiting."""
    stack = STACKS[server.stack]
    if "lines" in options.parts:
        print(f"\n{stack}: message sent → line printed by a real wait_for_task process\n{HEAD}")
        print(line("chatroom wait_for_task", await measure_lines(server, count=options.count, rate=options.rate)), flush=True)
    if "starts" in options.parts:
        print(f"\n{stack}: process started → waiting\n{HEAD}")
        for way in WAYS:
            print(line(way, await measure_starts(server, way=way, count=STARTS)), flush=True)
    if "browser" in options.parts:
        print(f"\n{stack}: commit → visible in Chromium (MutationObserver)\n{HEAD}")
        print(line("room page", await measure_browser(server, fleet, count=SIGHTS, rate=SIGHTS_A_SECOND)), flush=True)


if __name__ == "__main__":
    main()
