"""Which disturbance comes when: drawn from the seed, or given, as a trace that is replayed."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .world import World

# What has none comes only where it is asked for (`factors`).
WEIGHTS: dict[str, float] = {
    "actor.send": 30,
    "actor.burst": 3,
    "actor.send_odd": 0.5,
    "actor.add_to_backlog": 5,
    "actor.act_on_task": 18,
    "actor.look_on": 0.5,
    "actor.start_program": 12,
    "actor.interrupt_program": 3,
    "actor.kill_program": 4,
    "actor.suspend_program": 4,
    "actor.leave": 2,
    "actor.dismiss": 2,
    "actor.act_on_agent": 14,
    "actor.configure": 4,
    "actor.ping": 1,
    "actor.abort_everything": 0.5,
    "office.anything": 1.5,
    "faults.cut_network": 4,
    "faults.drop_connections": 5,
    "faults.skew_clock": 0.5,
    "faults.kill_web": 3,
    "faults.end_web": 1,
    "faults.kill_in_transaction": 5,
    "faults.lose_database": 1.5,
    "faults.kill_sweep": 1.5,
    "faults.kill_worker": 1,
    "faults.sweep_twice": 2,
    "faults.set_clock": 1,
    "faults.lose_hints": 1.5,
    "faults.other_web": 2,
    "faults.kill_run": 7,
    "faults.kill_all_runs": 2,
    "faults.freeze_run": 3,
    "faults.kill_daemon": 4,
    "faults.stop_daemon": 2,
    "faults.freeze_daemon": 2,
    "faults.abort_by_signal": 1,
    "faults.lose_power": 2,
    "faults.break_harness": 2,
    "faults.second_daemon": 1,
    "faults.change_offer": 1,
    "faults.outlast_lease": 0,
    "faults.lose_runs": 0,
}
# Seeds above this one draw weights of their own: some kinds never, some all the time. What needs a rare pair of disturbances shows there.
LOPSIDED = 20_000


@dataclass(frozen=True)
class Disturbance:
    at: float
    kind: str
    salt: int

    def __str__(self) -> str:
        return f"{self.at:8.2f}  {self.kind} ({self.salt})"


class Plan:
    """`steps`: acts that changed something, after which nothing new is disturbed; `until`: the moment at which a replay stops doing so."""

    def __init__(
        self, items: Iterator[Disturbance] | Sequence[Disturbance], *, steps: int | None = None, until: float | None = None
    ) -> None:
        self.items, self.steps, self.until = iter(items), steps, until
        self.done: list[Disturbance] = []
        self.ended_at = 0.0
        self.stories: list[asyncio.Task[Any]] = []

    async def carry_out(self, world: "World") -> None:
        for item in self.items:
            await self.wait_until(world, item.at)
            if self.is_over(world):
                break
            self.done.append(item)
            world.note("disturbance", f"{item.kind} ({item.salt})")
            self.stories.append(asyncio.ensure_future(self.tell(world, item)))
        if self.until is not None:
            await self.wait_until(world, self.until)
        self.ended_at = world.loop.time()
        for story in self.stories:
            story.cancel()

    async def wait_until(self, world: "World", at: float) -> None:
        """In small pieces: a violation, or the last of the steps, ends the wait."""
        while (left := at - world.loop.time()) > 0 and not self.is_over(world):
            await asyncio.sleep(min(left, 1.0))

    def is_over(self, world: "World") -> bool:
        return world.violation is not None or (self.steps is not None and world.steps >= self.steps)

    async def tell(self, world: "World", item: Disturbance) -> None:
        group, name = item.kind.split(".")
        try:
            await getattr(getattr(world, group), name)(Random(item.salt))
        except Exception as error:
            world.fail("the simulation itself", f"{item.kind}: {error!r}", error=error)


def drawn(seed: int, *, factors: Mapping[str, float] | None = None) -> Iterator[Disturbance]:
    """Busy and idle stretches, without end. `factors`: how many times more of a kind than usual there are."""
    rng = Random(f"{seed}/plan")
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    if seed > LOPSIDED:
        weights = [weight * rng.choice([0, 0.2, 1, 1, 4, 12]) for weight in weights]
    if factors:
        weights = [(weight or 1) * factors[kind] if kind in factors else weight for kind, weight in zip(kinds, weights, strict=True)]
    pace, at = rng.choice([0.3, 0.6, 1.0]), 1.0
    while True:
        at += pace * rng.choice([0.05, 0.5, 1.0, 2.0, 4.0]) * rng.random()
        if rng.random() < 0.02:
            at += 60 * rng.random()
        yield Disturbance(round(at, 3), rng.choices(kinds, weights)[0], rng.getrandbits(32))
