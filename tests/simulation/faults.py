"""What goes wrong: each a short story of its own, that mends itself after a while."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

from agents.models import Agent, Claim

from .machines import KILL, Machine, SimRun
from .network import Host

if TYPE_CHECKING:
    from .world import World

Story = Callable[[Random], Awaitable[None]]


def long_time(rng: Random) -> float:
    """Mostly seconds, sometimes minutes."""
    return rng.choice([2.0, 8.0, 25.0, 90.0]) * (0.5 + rng.random())


class Faults:
    def __init__(self, world: "World") -> None:
        self.world = world

    # Networks

    def pick_host(self, rng: Random) -> Host:
        return rng.choice(self.world.hosts)

    async def cut_network(self, rng: Random) -> None:
        host, seconds = self.pick_host(rng), long_time(rng)
        self.world.note("network", f"of {host.name} is cut for {seconds:.0f} s")
        host.cut(seconds)

    async def drop_connections(self, rng: Random) -> None:
        host = rng.choice([host for host in self.world.hosts if host.wires] or self.world.hosts)
        self.world.note("network", f"{host.name} loses its connections")
        host.drop_wires()

    async def skew_clock(self, rng: Random) -> None:
        host = self.pick_host(rng)
        host.clock_skew = rng.choice([-3600.0, 0.0, 3600.0])
        self.world.note("clock", f"of {host.name} is off by {host.clock_skew:.0f} s")

    # The server

    async def kill_web(self, rng: Random) -> None:
        self.world.note("fault", "web is killed")
        self.world.web.kill()
        await self.world.restart_web(after=rng.choice([1.0, 1.0, 4.0, 40.0, 120.0]) * (0.5 + rng.random()))

    async def end_web(self, rng: Random) -> None:
        self.world.note("fault", "web is told to end")
        await self.world.web.end()
        await self.world.restart_web(after=3 * rng.random())

    async def kill_in_transaction(self, rng: Random) -> None:
        self.world.database.kill_at = rng.randrange(1, 25)

    async def lose_database(self, rng: Random) -> None:
        seconds = long_time(rng)
        self.world.note("fault", f"the database is away for {seconds:.0f} s")
        self.world.database.away_until = self.world.loop.time() + seconds

    async def kill_sweep(self, rng: Random) -> None:
        self.world.note("fault", "the sweep is killed")
        self.world.background.sweeper.kill()
        await self.world.restart_background(after=long_time(rng))

    async def kill_worker(self, rng: Random) -> None:
        self.world.background.worker.kill()
        while not self.world.background.broker.empty():
            self.world.background.broker.get_nowait()
        await self.world.restart_background(after=long_time(rng))

    async def sweep_twice(self, rng: Random) -> None:
        sweeper = self.world.background.sweeper
        if sweeper.is_alive:
            sweeper.spawn(self.world.background.sweep())
            sweeper.spawn(self.world.background.sweep())

    async def set_clock(self, rng: Random) -> None:
        """The server's own clock, by an hour or so; later it is set right again."""
        if self.world.server_clock.offset:
            return
        jump = rng.choice([-3600.0, 3600.0, -45.0, 45.0])
        self.world.set_server_clock(jump)
        await asyncio.sleep(30 + long_time(rng))
        self.world.set_server_clock(0.0)

    async def lose_hints(self, rng: Random) -> None:
        self.world.note("fault", "hints are lost")
        self.world.hints.lost = 1.0
        await asyncio.sleep(long_time(rng))
        self.world.hints.lost = 0.1

    async def other_web(self, rng: Random) -> None:
        """The acts of the next seconds are accepted by another web process than the one that holds the sockets."""
        self.world.is_elsewhere = True
        await asyncio.sleep(10 * rng.random())
        self.world.is_elsewhere = False

    # Programs

    async def outlast_lease(self, rng: Random) -> None:
        """Who has a task in hand is away until it counts as dead; people may have taken its work away when it comes back."""
        working = dict(Agent.objects.filter(status="working", kind="custom").values_list("incarnation", "pk"))
        program = next((one for one in self.world.terminals if one.is_running and one.incarnation in working), None)
        if program is None:
            return
        self.world.note("suspended", f"{program.name}, until its lease is over")
        program.process.going.clear()
        agent = working[program.incarnation]
        ends = self.world.loop.time() + 300
        while Agent.objects.filter(pk=agent, status="working").exists() and self.world.loop.time() < ends:
            await asyncio.sleep(1)
        task = Claim.objects.filter(agent=agent).latest("pk").task_id
        for act in rng.choice([[], ["cancel"], ["cancel", "reopen"]]):
            await self.world.actor.press_on_task(act, task, program.room, rng=rng)
        program.process.going.set()

    # Machines

    def pick_machine(self, rng: Random) -> Machine:
        return rng.choice(self.world.machines)

    def pick_run(self, rng: Random) -> SimRun | None:
        found = [run for machine in self.world.machines for run in machine.living if run.record is None]
        return rng.choice(found) if found else None

    async def kill_run(self, rng: Random) -> None:
        if (run := self.pick_run(rng)) is not None:
            self.world.note("fault", f"process of run {run.info.run} is killed")
            run.signal(KILL)

    async def kill_all_runs(self, rng: Random) -> None:
        """Whatever they had in common: one machine's agents die together."""
        for run in self.pick_machine(rng).living:
            run.signal(KILL)

    async def freeze_run(self, rng: Random) -> None:
        if (run := self.pick_run(rng)) is not None:
            self.world.note("fault", f"process of run {run.info.run} is stopped (SIGSTOP)")
            run.freeze(stopped=True)
            await asyncio.sleep(long_time(rng))
            run.freeze(stopped=False)

    async def kill_daemon(self, rng: Random) -> None:
        machine = self.pick_machine(rng)
        self.world.note("fault", f"daemon of {machine.name} is killed")
        machine.kill_daemon()
        await self.world.restart_daemon(machine, after=long_time(rng))

    async def stop_daemon(self, rng: Random) -> None:
        machine = self.pick_machine(rng)
        machine.stop_daemon(keep_agents=rng.random() < 0.6)
        await self.world.restart_daemon(machine, after=20 + long_time(rng))

    async def freeze_daemon(self, rng: Random) -> None:
        machine = self.pick_machine(rng)
        self.world.note("fault", f"daemon of {machine.name} is stopped (SIGSTOP)")
        machine.freeze_daemon(stopped=True)
        await asyncio.sleep(long_time(rng))
        machine.freeze_daemon(stopped=False)

    async def abort_by_signal(self, rng: Random) -> None:
        """SIGHUP to the daemon."""
        machine = self.pick_machine(rng)
        if machine.daemon is not None:
            machine.daemon.abort_everything()

    async def lose_power(self, rng: Random, *, and_files: bool = False) -> None:
        machine = self.pick_machine(rng)
        if machine.has_power:
            self.world.note("fault", f"{machine.name} loses power{', and its daemon its files' if and_files else ''}")
            machine.lose_power()
            if and_files:
                machine.forget_runs()
            await asyncio.sleep(5 + long_time(rng))
            machine.boot()

    async def lose_runs(self, rng: Random) -> None:
        """A power cut, after which nobody there knows what ran."""
        await self.lose_power(rng, and_files=True)

    async def break_harness(self, rng: Random) -> None:
        machine = self.pick_machine(rng)
        machine.is_broken = True
        await asyncio.sleep(long_time(rng))
        machine.is_broken = False

    async def change_offer(self, rng: Random) -> None:
        """Its configuration is read again: a harness more, or less."""
        machine = self.pick_machine(rng)
        another: dict[str, object] = {"name": f"tool {rng.randrange(9)}"}
        machine.offer = [*machine.offer[:1], another] if rng.random() < 0.7 else machine.offer[:1]
        if machine.daemon is not None:
            machine.daemon.offer = machine.offer
            machine.process.spawn(machine.daemon.link.hint({"type": "harnesses", **machine.daemon.describe_offer()}))

    async def second_daemon(self, rng: Random) -> None:
        """Copied credentials: refused as long as the first one answers."""
        await self.world.try_second_daemon(self.pick_machine(rng), instance=f"{rng.getrandbits(64):016x}")
