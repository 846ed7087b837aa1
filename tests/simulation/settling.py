"""After the faults: nobody helps at first, then people do what only they can; then everything must be done, once, and be true."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from agents.models import Agent
from chatroom import ending
from chatroom.models import Notice, Task
from chatroom.models.task import ACTIVE
from machines.models import Placement

if TYPE_CHECKING:
    from .world import World

# The longest lease (a working custom agent's) and what was given back to it, quiet time, the longest wait between two tasks,
# a start that was never confirmed, and the sweep after it.
BY_ITSELF = 220.0
TRUE_WITHIN = 30.0
WITH_HELP = 400.0
SHOWN, STRANDED, STOPPED = "8: what is shown is true", "8: nothing stranded", "9: who is stopped has no process"
Problem = tuple[str, str]


async def settle(world: "World") -> None:
    calm(world)
    await until(world, disorders, within=BY_ITSELF)
    await world.actor.help_everybody()
    await until(world, unfinished, within=WITH_HELP, helping=True)
    await stop_everybody(world)
    await until(world, survivors, within=TRUE_WITHIN)
    if world.violation is None:
        world.checker.look_at_everything()
        world.checker.finally_stored()


def calm(world: "World") -> None:
    world.note("calm", "no fault from here on")
    world.is_calm, world.is_elsewhere = True, False
    world.database.away_until, world.database.kill_at = 0.0, None
    if world.server_clock.offset:
        world.set_server_clock(0.0)
    for host in world.hosts:
        host.is_calm = True
        host.heal()
    if ending.ending:
        world.web.kill()  # it was told to end, and the story of that is over
    if not world.web.is_up:
        world.web.start()
    world.background.start()
    for program in world.programs:
        program.process.going.set()
    for machine in world.machines:
        machine.freeze_daemon(stopped=False)
        machine.boot()
        for run in machine.living:
            run.freeze(stopped=False)


async def until(world: "World", find_problems: Callable[["World"], list[Problem]], *, within: float, helping: bool = False) -> None:
    """Nothing more to complain about, twice in a row; or it is a violation."""
    ends, were_none = world.loop.time() + within, False
    while world.violation is None:
        for machine in world.machines:
            machine.start_daemon()  # one that was told to end, and ended only now
        await asyncio.sleep(4.0)
        problems = find_problems(world)
        if not problems and were_none:
            world.note("calm", f"{find_problems.__name__}: in order")
            return
        were_none = not problems
        if problems and world.loop.time() >= ends:
            world.fail(*problems[0])
        elif problems and helping and world.loop.time() > ends - within / 2:
            await world.actor.help_everybody()  # somebody closed a program, or an attempt failed, while we looked
            await asyncio.sleep(20)


def disorders(world: "World") -> list[Problem]:
    return untruths(world) + strandings(world)


def untruths(world: "World") -> list[Problem]:
    """What the rooms show is what the programs do."""
    found: list[Problem] = []
    for agent in Agent.objects.select_related("room").order_by("pk"):
        speakers = [program for program in world.programs if program.is_running and world.checker.speaks(program, agent.incarnation)]
        mine = [program for program in speakers if (program.room, program.role) == (agent.room.slug, agent.role)]
        if agent.is_live and not mine:
            found.append((SHOWN, f"{agent.role} is {agent.status}, and no program of it is there"))
        if agent.status == "ready" and mine and not any(program.is_waiting for program in mine):
            found.append((SHOWN, f"{agent.role} is ready, and its program does not wait"))
        if agent.status == "ready" and agent.waiting_since is None and any(program.is_waiting for program in mine):
            found.append((SHOWN, f"{agent.role} is shown as not waiting, and its program waits"))
        if not agent.is_live and any(program.is_waiting for program in mine):
            found.append((SHOWN, f"{agent.role} is {agent.status}, and its program waits"))
    return found


def strandings(world: "World") -> list[Problem]:
    """Every pending task is on its way, or people were told why it is not."""
    found: list[Problem] = []
    for task in Task.objects.filter(status="pending").select_related("room").order_by("pk"):
        agent = Agent.objects.get(room=task.room, role=task.assigned_role)
        where = f"task {task.pk} waits for {agent.role} ({agent.kind}, {agent.status})"
        if agent.is_live:
            found.append((STRANDED, where))
        elif not is_being_started(agent) and not was_told(agent, task):
            found.append(("8: people are told", f"{where}, and nobody was told"))
    return found


def was_told(agent: Agent, task: Task) -> bool:
    """Of this wait, or of what keeps the agent from being started, when that began."""
    placement = Placement.objects.filter(agent=agent).first()
    if placement is not None and placement.is_exhausted:
        return Notice.objects.filter(episode=f"exhausted:{agent.pk}:{placement.exhausted_generation}").exists()
    # By its episode: one that was told while the clock was set back counts as well.
    return Notice.objects.filter(episode=f"task-waiting:{task.pk}:{task.status_since.isoformat()}").exists()


def is_being_started(agent: Agent) -> bool:
    placement = Placement.objects.filter(agent=agent).first()
    return placement is not None and agent.status == "restarting" and not placement.is_stopped


def unfinished(world: "World") -> list[Problem]:
    found: list[Problem] = []
    for task in Task.objects.filter(status__in=[*ACTIVE, "queued"]).order_by("pk"):
        agent = Agent.objects.get(room=task.room_id, role=task.assigned_role)
        found.append((STRANDED, f"task {task.pk} is {task.status} in the end, {agent.role} ({agent.kind}) is {agent.status}"))
    return found


async def stop_everybody(world: "World") -> None:
    for agent in Agent.objects.filter(kind="remote").select_related("room").order_by("pk"):
        await world.actor.press("stop", agent.room.slug, agent.role)


def survivors(world: "World") -> list[Problem]:
    """9: stopped means that no process is left."""
    found = [
        (STOPPED, f"run {run.info.run} of {run.info.role} lives on {machine.name}") for machine in world.machines for run in machine.living
    ]
    remote = Agent.objects.filter(kind="remote").exclude(status="offline").order_by("pk")
    return found + [(STOPPED, f"{agent.role} is {agent.status} after its stop") for agent in remote]
