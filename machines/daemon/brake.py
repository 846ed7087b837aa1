"""When more than half die together, something is wrong with the machine: restarts go one at a time."""

import asyncio
from collections import deque

from machines.daemon.policy import Limits, breaker_is_open


class Brake:
    def __init__(self) -> None:
        self.deaths: deque[tuple[int, float]] = deque(maxlen=1000)
        self.holder: int | None = None
        self.released = asyncio.Event()

    def died(self, agent: int, *, now: float) -> None:
        self.deaths.append((agent, now))

    def is_open(self, *, agents: int, limits: Limits, now: float) -> bool:
        return breaker_is_open(self.deaths, agents=agents, limits=limits, now=now)

    def take_turn(self, agent: int, *, agents: int, limits: Limits, now: float) -> bool:
        """True: this agent may start now. While the brake is on, one holds the turn until it has joined or failed."""
        if not self.is_open(agents=agents, limits=limits, now=now):
            self.holder = None
            return True
        if self.holder is None:
            self.holder = agent
        return self.holder == agent

    def give_up_turn(self, agent: int) -> None:
        if self.holder == agent:
            self.holder = None
            self.released.set()
            self.released.clear()
