"""Runs a seed, or a trace of one; shrinks the trace of a broken one to the shortest that still breaks."""

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.apps import apps
from django.db import OperationalError, connection

from chatroom.errors import ChatroomError
from machines.daemon.errors import LinkLost

from .clock import VirtualLoop
from .patches import simulated
from .plan import Disturbance, Plan, drawn
from .world import Violation, World

LOCAL = ("chatroom", "agents", "machines")
TRIES_TO_SHRINK = 60


@dataclass(frozen=True)
class Result:
    seed: int
    steps: int
    seconds: float
    items: list[Disturbance]
    ended_at: float
    violation: Violation | None
    log: list[str] = field(repr=False)


def run_seed(seed: int, *, steps: int, factors: Mapping[str, float] | None = None) -> Result:
    return carry_out(seed, Plan(drawn(seed, factors=factors), steps=steps))


def replay(seed: int, items: Sequence[Disturbance], *, until: float) -> Result:
    return carry_out(seed, Plan(items, until=until))


def carry_out(seed: int, plan: Plan) -> Result:
    wipe()
    gc.freeze()  # what is there already is never garbage: each look at it took a tenth of the whole time
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return play(seed, plan, runner)
    finally:
        gc.unfreeze()


def play(seed: int, plan: Plan, runner: asyncio.Runner) -> Result:
    loop = runner.get_loop()
    assert isinstance(loop, VirtualLoop)
    world = World(seed, loop)
    loop.set_exception_handler(lambda _, context: complain(world, context))
    with simulated(world):
        runner.run(world.while_well(world.run(plan)))
        runner.run(end(world))
    return Result(seed, world.steps, loop.time(), plan.done, plan.ended_at, world.violation, list(world.log))


async def end(world: World) -> None:
    world.stop_everything()
    await asyncio.sleep(0)


def complain(world: World, context: dict[str, object]) -> None:
    error, task = context.get("exception"), context.get("future")
    # Nobody was left to hear it: the daemon, or the program that was refused, or whose call found no database, was killed.
    if isinstance(error, LinkLost | ChatroomError):
        return
    if isinstance(error, OperationalError) and isinstance(task, asyncio.Task) and getattr(task.get_coro(), "__name__", "") == "run_call":
        return
    world.fail("no unexpected errors", f"{context.get('message')} {error!r}", error=error if isinstance(error, BaseException) else None)


def wipe() -> None:
    """An empty database, quicker than a new one."""
    gc.collect()
    tables = [model._meta.db_table for name in LOCAL for model in apps.get_app_config(name).get_models(include_auto_created=True)]
    with connection.cursor() as cursor, connection.constraint_checks_disabled():
        if connection.vendor == "postgresql":
            cursor.execute(f"TRUNCATE {', '.join(tables)}, auth_user RESTART IDENTITY CASCADE")
            cursor.execute("SET synchronous_commit = off")
            return
        for table in [*tables, "auth_user"]:
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute("DELETE FROM sqlite_sequence")


# Shrinking


def shrink(result: Result, *, tries: int = TRIES_TO_SHRINK) -> Result:
    """The shortest prefix, then without every piece that is not needed (delta debugging)."""
    assert result.violation is not None
    best = again(result, [item for item in result.items if item.at <= result.violation.at]) or result
    size = max(1, len(best.items) // 2)
    while tries > 0 and size >= 1:
        start, shorter = 0, False
        while start < len(best.items) and tries > 0:
            tries -= 1
            candidate = best.items[:start] + best.items[start + size :]
            found = again(best, candidate)
            if found is not None:
                best, shorter = found, True
            else:
                start += size
        size = size if shorter and size == 1 else size // 2
    return best


def again(result: Result, items: list[Disturbance]) -> Result | None:
    """Without what was left out: does the same invariant break?"""
    assert result.violation is not None
    found = replay(result.seed, items, until=result.ended_at)
    return found if found.violation is not None and found.violation.invariant == result.violation.invariant else None


def report(result: Result, *, lines: int = 60) -> str:
    plan = "\n".join(f"    {item}" for item in result.items)
    log = "\n".join(result.log[-lines:])
    head = f"seed {result.seed}, after {result.steps} steps: {result.violation}"
    return f"{head}\n  shortest trace, {len(result.items)} disturbances:\n{plan}\n  log:\n{log}"
