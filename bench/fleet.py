"""Fifty agents that wait on their sockets: ten rooms of five roles. Each completes what it gets and waits on."""

import asyncio
import os
import time
from dataclasses import dataclass, field
from itertools import count, cycle

from bench.wire import Api, Message, Socket, open_socket

BURST_LIMIT = 180.0
ROOMS, ROLES = 10, ["planner", "builder", "reviewer", "tester", "writer"]
LIMIT = 20.0


@dataclass
class Timings:
    """When message n was sent, when its offer was heard, when its work was done."""

    sent: dict[str, float] = field(default_factory=dict)
    offered: dict[str, float] = field(default_factory=dict)
    done: dict[str, float] = field(default_factory=dict)

    def latencies(self) -> list[float]:
        return [self.offered[text] - sent for text, sent in self.sent.items()]


class Agent:
    def __init__(self, api: Api, *, room: str, role: str, timings: Timings, may_complete: asyncio.Event) -> None:
        self.api, self.room, self.role, self.timings, self.may_complete = api, room, role, timings, may_complete
        self.socket: Socket | None = None
        self.welcome: asyncio.Event = asyncio.Event()
        self.working: asyncio.Task[None] | None = None
        self.text = ""

    async def start(self) -> None:
        self.welcome.clear()
        self.socket = await open_socket(self.api, "/ws/agent/", self.hear)
        incarnation = os.urandom(16).hex()
        self.socket.send(
            {"type": "hello", "protocol": 1, "room": self.room, "role": self.role, "incarnation": incarnation, "joined": False}
        )
        await asyncio.wait_for(self.welcome.wait(), LIMIT)

    def hear(self, message: Message) -> None:
        assert self.socket is not None
        match message["type"]:
            case "offer":
                self.text = message["text"]
                self.timings.offered[self.text] = time.monotonic()
                self.socket.send({"type": "received", "claim": message["claim"]})
            case "confirmed":
                self.working = asyncio.get_running_loop().create_task(self.complete(message["claim"], self.text))
            case "welcome":
                self.welcome.set()
            case "renewed":
                pass
            case unexpected:
                raise RuntimeError(f"{self.role} of {self.room} heard {unexpected}: {message}")

    async def complete(self, claim: str, text: str) -> None:
        await self.may_complete.wait()
        await self.api.call("POST", f"rooms/{self.room}/claims/{claim}/complete", {"text": "done"})
        self.timings.done[text] = time.monotonic()

    def stop(self) -> None:
        if self.socket:
            self.socket.send({"type": "leave"})
            self.socket.transport.close()


class Fleet:
    """One stack's agents, and the person who sends to them."""

    def __init__(self, url: str, token: str) -> None:
        self.api = Api(url, token)
        self.timings = Timings()
        self.agents: list[Agent] = []
        self.may_complete = asyncio.Event()
        self.may_complete.set()
        self.numbers = count(1)

    async def start(self) -> None:
        for number in range(ROOMS):
            room = await self.api.call("POST", "rooms", {"name": f"Bench {number}", "team": ROLES})
            self.agents += [self.agent(room["slug"], role) for role in ROLES]
        # The rooms take turns, not only the roles.
        self.agents.sort(key=lambda agent: ROLES.index(agent.role))
        self.turns = cycle(self.agents)
        for agent in self.agents:
            await agent.start()

    def agent(self, room: str, role: str) -> Agent:
        return Agent(self.api, room=room, role=role, timings=self.timings, may_complete=self.may_complete)

    async def send(self) -> None:
        agent, text = next(self.turns), f"work {next(self.numbers)}"
        self.timings.sent[text] = time.monotonic()
        await self.api.call("POST", f"rooms/{agent.room}/messages", {"text": text, "to": agent.role})

    def hold(self) -> None:
        """Nobody completes what it has until everything was heard."""
        self.may_complete.clear()

    async def until_heard(self) -> float:
        """When the last task was heard."""
        async with asyncio.timeout(BURST_LIMIT):
            while len(self.timings.offered) < len(self.timings.sent):
                await asyncio.sleep(0.002)
        self.may_complete.set()
        return max(self.timings.offered.values())

    async def until_done(self) -> None:
        async with asyncio.timeout(BURST_LIMIT):
            while len(self.timings.done) < len(self.timings.sent):
                await asyncio.sleep(0.002)

    def take_timings(self) -> Timings:
        taken, self.timings = self.timings, Timings()
        for agent in self.agents:
            agent.timings = self.timings
        return taken

    def stop(self) -> None:
        for agent in self.agents:
            agent.stop()
        self.api.close()
