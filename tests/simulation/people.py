"""What people do: they send, press buttons in any order, start programs in terminals, close their laptops."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any

from agents import api as agents_api
from agents.models import Agent
from chatroom import api
from chatroom.errors import ChatroomError
from chatroom.models import Task
from machines import api as machines_api
from machines.api import Configuration

from .network import Host, Lost
from .programs import Program
from .questions import UNDONE, rows
from .server import request

if TYPE_CHECKING:
    from .world import World

Endpoint = Callable[[Any], Awaitable[Any]]
ENOUGH = 5
TASK_ACTS = ["cancel", "cancel", "reset", "reset", "retry", "retry", "force_complete", "move_to_queue", "approve", "send_back", "reopen"]
AGENT_ACTS = ["start", "start", "stop", "restart", "restart", "abort"]
ODD_TEXTS = ["", "   ", "a\0b", "\ud800", "x" * (256 * 1024 + 1)]


class People:
    def __init__(self, world: "World", secrets: dict[str, str]) -> None:
        self.world, self.secrets = world, secrets
        self.laptop = Host("people's laptops", rng=world.rng("laptop"))
        self.sent = 0

    async def ask(self, name: str, endpoint: Endpoint, *, rng: Random, what: str, patience: int = 4) -> dict[str, Any] | None:
        """A press of a button: tried a few times with the same key. None when it was refused, or given up."""
        key = f"{what}:{rng.getrandbits(64)}"
        self.world.note(f"{name}: {what}")

        def call() -> Awaitable[Any]:
            return self.world.checker.remembering(key, endpoint(request(self.secrets[name], key=key)))

        for _ in range(patience):
            try:
                return await self.world.web.http(self.laptop, call)
            except ChatroomError as error:
                self.world.checker.refused(what, "", key, error)
                return None
            except Lost:
                await asyncio.sleep(4 * rng.random())
        return None

    # Work

    async def send(self, rng: Random) -> None:
        """Nobody piles work up without end: it would only make the simulation slow."""
        if len(rows(UNDONE)) >= ENOUGH:
            return
        room = self.world.pick_room(rng)
        self.sent += 1
        to = rng.choice(["", "", "", *self.world.teams[room]]) or None
        body = api.NewMessage(text=f"job {self.sent}", to=to)
        answer = await self.ask("alice", lambda asked: api.new_message(asked, room, body), rng=rng, what="sends")
        if answer is not None:
            self.world.checker.accepted_messages.append(answer["message"])

    async def send_odd(self, rng: Random) -> None:
        body = api.NewMessage(text=rng.choice(ODD_TEXTS))
        await self.ask("alice", lambda asked: api.new_message(asked, self.world.pick_room(rng), body), rng=rng, what="sends nonsense")

    async def burst(self, rng: Random) -> None:
        for _ in range(3):
            asyncio.ensure_future(self.send(Random(rng.getrandbits(32))))  # noqa: RUF006  (the loop's own task factory keeps it)

    async def add_to_backlog(self, rng: Random) -> None:
        room = self.world.pick_room(rng)
        self.sent += 1
        body = api.NewBacklogItem(
            text=f"item {self.sent}", to=rng.choice([None, *self.world.teams[room]]), priority=rng.choice([0, 5, 10**7])
        )
        await self.ask("bob", lambda asked: api.new_backlog_item(asked, room, body), rng=rng, what="adds to the backlog")

    async def act_on_task(self, rng: Random) -> None:
        """Mostly on what can be acted on, sometimes on anything."""
        act = rng.choice(TASK_ACTS)
        wanted = {
            "retry": ["failed"], "move_to_queue": ["backlog"], "approve": ["pending_user_review"], "send_back": ["pending_user_review"],
            "reopen": ["completed", "closed"], "reset": ["acknowledged", "in_progress"],
            "cancel": ["pending", "acknowledged", "in_progress"],
        }  # fmt: skip
        tasks = Task.objects.order_by("pk")
        if rng.random() < 0.9 and act in wanted:
            tasks = tasks.filter(status__in=wanted[act])
        found = list(tasks.values_list("pk", "room__slug").reverse()[:8])
        if found:
            pk, room = rng.choice(found)
            await self.press_on_task(act, pk, room, rng=rng)

    async def press_on_task(self, act: str, pk: int, room: str, *, rng: Random) -> None:
        reason = rng.choice(["", "not like this", "not like this"])
        # Each text once: one that stands twice is a doubled one.
        body = api.Reason(reason=reason and f"{reason}: {rng.getrandbits(48):x}")
        await self.ask("bob", lambda asked: api.act_on_task(asked, room, pk, act, body), rng=rng, what=f"{act} of a task")

    async def look_on(self, rng: Random) -> None:
        """A viewer may look, not act; a stranger not even that."""
        room = self.world.pick_room(rng)
        body = api.NewMessage(text="hello from outside")
        for name in ("vera", "charlie"):
            answer = await self.ask(name, lambda asked: api.new_message(asked, room, body), rng=rng, what="tries to send", patience=1)
            if answer is not None:
                self.world.checker.violated("11: only members act", f"{name} sent a message")

    # Custom agents

    async def start_program(self, rng: Random) -> None:
        """Now and then two at the same instant, and for roles that are not custom."""
        custom = [(room, role) for room, role, kind in self.world.roles() if kind == "custom" or rng.random() < 0.1]
        if custom:
            room, role = rng.choice(custom)
            for _ in range(rng.choice([1, 1, 1, 2])):
                self.run_program(room, role)

    def run_program(self, room: str, role: str) -> Program:
        number = sum(program.run is None for program in self.world.programs) + 1
        program = Program(
            self.world,
            name=f"{role}@terminal {number}",
            room=room,
            role=role,
            secret=self.secrets["alice"],
            host=self.world.laptops[number % 2],
        )
        self.world.terminals.append(program)
        program.start()
        self.world.note("terminal", f"{program.name} starts")
        return program

    async def interrupt_program(self, rng: Random) -> None:
        if (program := self.pick_program(rng)) is not None:
            program.process.spawn(program.leave())

    async def kill_program(self, rng: Random) -> None:
        if (program := self.pick_program(rng)) is not None:
            self.world.note("killed", program.name)
            program.process.kill()

    async def suspend_program(self, rng: Random) -> None:
        """A laptop's lid: closed for a while, and what ran there goes on as if nothing had been."""
        if (program := self.pick_program(rng)) is not None:
            self.world.note("suspended", program.name)
            program.process.going.clear()
            await asyncio.sleep(300 * rng.random() ** 2)
            program.process.going.set()

    def pick_program(self, rng: Random) -> Program | None:
        found = [program for program in self.world.programs if program.run is None and program.is_running]
        return rng.choice(found) if found else None

    async def leave(self, rng: Random) -> None:
        room, role, _ = rng.choice(self.world.roles())
        body = agents_api.Goodbye(incarnation=None)
        await self.ask("bob", lambda asked: agents_api.leave(asked, room, role, body), rng=rng, what=f"stops {role}")

    async def dismiss(self, rng: Random) -> None:
        room, role, _ = rng.choice(self.world.roles())
        await self.ask("bob", lambda asked: agents_api.dismiss(asked, room, role), rng=rng, what=f"dismisses {role}")

    # Remote agents

    async def act_on_agent(self, rng: Random) -> None:
        remote = [(room, role) for room, role, kind in self.world.roles() if kind == "remote" or rng.random() < 0.05]
        if not remote:
            return
        room, role = rng.choice(remote)
        for _ in range(rng.choice([1, 1, 1, 3])):
            await self.press(rng.choice(AGENT_ACTS), room, role, name=rng.choice(["alice", "bob"]), rng=rng)

    async def configure(self, rng: Random) -> None:
        room, role, kind = rng.choice(self.world.roles())
        machine = rng.choice([None, *[machine.name for machine in self.world.machines], "nowhere"])
        body = Configuration(
            kind=rng.choice([None, None, "remote", "custom" if kind == "custom" else None]),
            machine=machine,
            harness=rng.choice([None, None, "worker", "unknown"]),
            model=rng.choice([None, None, "small", "huge"]),
            directory=rng.choice([None, None, "/src/a", "/etc"]),
            force=rng.random() < 0.3,
        )
        await self.ask("alice", lambda asked: machines_api.configure(asked, room, role, body), rng=rng, what=f"configures {role}")

    async def ping(self, rng: Random) -> None:
        name, act = rng.choice(self.world.machines).name, rng.choice(["ping", "status"])
        await self.ask("alice", lambda asked: machines_api.ask(asked, name, act), rng=rng, what=f"{act} {name}", patience=1)  # type: ignore[arg-type]

    async def abort_everything(self, rng: Random) -> None:
        await self.ask("alice", machines_api.abort_runs, rng=rng, what="aborts every run")

    async def help_everybody(self) -> None:
        """When all is calm: whatever only a person can do is done."""
        for agent in Agent.objects.select_related("room").order_by("pk"):
            slug, role = agent.room.slug, agent.role
            if agent.kind == "remote":
                await self.press("start", slug, role)
            elif not agent.is_live:
                self.run_program(slug, role)

    async def press(self, act: str, room: str, role: str, *, name: str = "alice", rng: Random | None = None) -> None:
        endpoint = getattr(machines_api, act)
        rng = rng or self.world.rng(f"{act} {room} {role} {self.world.loop.time()}")
        await self.ask(name, lambda asked: endpoint(asked, room, role), rng=rng, what=f"{act} of {role}")
