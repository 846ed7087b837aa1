"""One simulated world: made from a seed, disturbed by a plan, calmed, and found in order, or not."""

import asyncio
import json
import traceback
from collections import deque
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any

from django.contrib.auth.models import User
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agents.models import Agent
from chatroom.models import MemberRole, Membership, Token, TokenKind
from chatroom.services.rooms import create_room
from machines.models import Machine as MachineRow
from machines.models import Mode, Placement
from machines.services.registration import issue_enrolment, redeem_enrolment, register_machine

from .administration import Administration
from .clock import ServerClock, VirtualLoop
from .faults import Faults
from .invariants import Checker
from .machines import Machine
from .network import Dial, Host
from .people import People
from .plan import Plan
from .processes import OWNER, SimProcess, make_task
from .programs import Habits, Program
from .questions import ROLES, rows
from .server import Background, Database, Hints, Web
from .settling import settle

PEOPLE = ("alice", "bob", "vera", "charlie")
TRACE = 4000


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str
    at: float
    trace: str = ""

    def __str__(self) -> str:
        return f"[{self.invariant}] {self.what} (at {self.at:.1f} s){self.trace and chr(10) + self.trace}"


class World:
    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.seed, self.loop = seed, loop
        self.server_clock = ServerClock(loop)
        self.is_calm = self.is_elsewhere = self.clock_jumped = False
        self.steps = 0
        self.violation: Violation | None = None
        self.over = asyncio.Event()
        self.log: deque[str] = deque(maxlen=TRACE)
        self.people = {"alice", "bob"}
        self.teams: dict[str, list[str]] = {}
        self.room_ids: list[int] = []
        self.machines: list[Machine] = []
        self.terminals: list[Program] = []
        self.stories: list[asyncio.Task[Any]] = []
        self.habits = Habits.draw(self.rng("habits"))
        self.checker = Checker(self)
        self.database, self.web, self.hints, self.background = Database(self), Web(self), Hints(self), Background(self)
        self.faults, self.office = Faults(self), Administration(self)
        self.laptops = [Host(f"laptop {number}", rng=self.rng(f"laptop {number}")) for number in range(2)]
        self.actor: People

    # Small things that everybody uses

    def rng(self, name: str) -> Random:
        return Random(f"{self.seed}/{name}")

    def note(self, what: str, more: str = "") -> None:
        self.log.append(f"{self.loop.time():8.2f}  {what}{': ' if more else ''}{more}")

    def fail(self, invariant: str, what: str, *, error: BaseException | None = None) -> None:
        if self.violation is None:
            trace = "".join(traceback.format_exception(error)[-6:]) if error is not None else ""
            self.violation = Violation(invariant, what, self.loop.time(), trace)
            self.note("VIOLATED", f"{invariant}: {what}")
            self.over.set()

    @property
    def hosts(self) -> list[Host]:
        return [*(machine.host for machine in self.machines), *self.laptops, self.actor.laptop]

    @property
    def programs(self) -> list[Program]:
        return [*self.terminals, *(run.program for machine in self.machines for run in machine.runs.values() if run.program is not None)]

    def roles(self) -> list[tuple[str, str, str]]:
        return rows(ROLES)

    def pick_room(self, rng: Random) -> str:
        return rng.choice(list(self.teams))

    def is_frozen(self, agent_id: int) -> bool:
        return any(run.is_stopped for machine in self.machines for run in machine.living if run.info.agent == agent_id)

    def set_server_clock(self, offset: float) -> None:
        if self.server_clock.offset != offset:
            self.note("clock", f"of the server is set to {offset:+.0f} s")
            self.server_clock.offset, self.clock_jumped = offset, True

    def kill_server_process(self, process: SimProcess) -> None:
        if process is self.web.process:
            self.web.kill()
            self.spawn(self.restart_web(after=1.0))
        else:
            process.kill()
            self.spawn(self.restart_background(after=3.0))

    def spawn(self, act: Coroutine[Any, Any, Any]) -> None:
        """A task of the world itself: it must not die with the process in whose code it was begun."""
        token = OWNER.set(None)
        try:
            self.stories.append(asyncio.ensure_future(act))
        finally:
            OWNER.reset(token)

    async def restart_web(self, *, after: float) -> None:
        await asyncio.sleep(after)
        if not self.web.is_up:
            self.web.start()

    async def restart_background(self, *, after: float) -> None:
        await asyncio.sleep(after)
        self.background.start()

    async def restart_daemon(self, machine: Machine, *, after: float) -> None:
        await asyncio.sleep(after)
        machine.start_daemon()

    async def try_second_daemon(self, machine: Machine, *, instance: str) -> None:
        """Says hello in the name of a machine whose own daemon is connected."""
        if machine.daemon is None or not machine.daemon.link.is_up or machine.host.is_cut or not machine.process.going.is_set():
            return
        hello = {"type": "hello", "protocol": 1, "instance": instance, "runs": []}
        try:
            async with Dial(self, "/ws/machine/", machine.secret, host=self.laptops[0]) as socket:
                silent = (
                    machine.daemon is None or not machine.daemon.link.is_up or machine.host.is_cut or not machine.process.going.is_set()
                )
                if silent or self.database.is_away:
                    return
                await socket.send(json.dumps(hello))
                async with asyncio.timeout(5):
                    answer = json.loads(await socket.recv())
                if answer["type"] == "welcome" and machine.daemon is not None and machine.daemon.link.is_up and not machine.host.is_cut:
                    self.note("second daemon", f"of {machine.name} is welcome")
        except (OSError, InvalidStatus, ConnectionClosed, TimeoutError):
            pass

    # From the seed to the end

    def make(self) -> None:
        """Rooms, people, machines, placements: through the services, but without anybody waiting."""
        rng = self.rng("make")
        users = {name: User.objects.create_user(name) for name in PEOPLE}
        secrets = {name: Token.objects.issue(kind=TokenKind.PERSON, name="simulated", user=user)[1] for name, user in users.items()}
        self.actor = People(self, secrets)
        self.make_machines(users["alice"], count=rng.choice([1, 2, 2]))
        teams: list[Any] = ["squad", "pair", "solo", ["scout", "builder", "tester", "reviewer", "writer"]]
        for number in range(rng.choice([1, 1, 2])):
            room = create_room(f"Room {number}", team=rng.choice(teams), owner=users["alice"], fail_fast=rng.random() < 0.2)
            Membership.objects.create(room=room, user=users["bob"], role=MemberRole.MEMBER)
            Membership.objects.create(room=room, user=users["vera"], role=MemberRole.VIEWER)
            self.teams[room.slug] = room.team
            self.room_ids.append(room.pk)
            remote = rng.choice([0.2, 0.7, 1.0])
            for agent in Agent.objects.filter(room=room).order_by("pk"):
                if rng.random() < remote:
                    self.place(agent, rng)

    def make_machines(self, owner: User, *, count: int) -> None:
        for number in range(count):
            name = f"m{number}"
            if number:
                _, secret = redeem_enrolment(issue_enrolment(owner), name=name, platform="simulated")
            else:
                _, secret = register_machine(name, platform="simulated", owner=owner)
            self.machines.append(Machine(self, name, secret=secret))

    def place(self, agent: Agent, rng: Random) -> None:
        machine = MachineRow.objects.get(name=rng.choice(self.machines).name)
        Placement.objects.create(agent=agent, machine=machine, harness="worker", mode=Mode.LOOP)
        agent.kind = "remote"
        agent.save()

    async def run(self, plan: Plan) -> None:
        self.loop.set_task_factory(make_task)
        self.make()
        self.web.start()
        self.background.start()
        for machine in self.machines:
            machine.start_daemon()
        for room, role, kind in self.roles():
            if kind == "custom" and self.rng(role).random() < 0.8:
                self.actor.run_program(room, role)
        await plan.carry_out(self)
        if self.violation is None:
            await settle(self)
        self.stop_everything()

    def stop_everything(self) -> None:
        for process in [self.web.process, self.background.sweeper, self.background.worker, *(program.process for program in self.programs)]:
            process.kill()
        for machine in self.machines:
            machine.kill_daemon()
            for run in machine.runs.values():
                run.shim.kill()

    async def while_well(self, act: Awaitable[Any]) -> None:
        """Goes on until the act is done, or an invariant is broken."""
        task = asyncio.ensure_future(act)
        broken = asyncio.ensure_future(self.over.wait())
        await asyncio.wait([task, broken], return_when=asyncio.FIRST_COMPLETED)
        broken.cancel()
        if not task.done():
            task.cancel()
        elif not task.cancelled() and (error := task.exception()) is not None:
            self.fail("the simulation itself", repr(error), error=error)
