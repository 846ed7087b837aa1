"""Where the simulation takes the place of clocks, threads, sockets and brokers. Everything else is the program itself."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from django.db import OperationalError, connections
from django.test import override_settings

from agents import waiters
from chatroom.hub import hub

from . import machines
from .clock import NUMBERS, OrderedSet, TimeModule
from .network import connector

if TYPE_CHECKING:
    from .world import World

LOUD = logging.ERROR


class Alarm(logging.Handler):
    """Whatever the program itself calls an error is one."""

    def __init__(self, world: "World") -> None:
        super().__init__(LOUD)
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, OperationalError) and self.world.database.is_away:
            return  # said loudly, as it should be
        self.world.checker.violated("no unexpected errors", f"{record.getMessage()} {error!r}", error=error)


def replacements(world: "World") -> dict[str, Any]:
    loop, server_time = world.loop, TimeModule(world.loop, wall=world.loop.time)
    find = waiters.find
    return {
        "django.utils.timezone.datetime": world.server_clock.as_datetime(),
        "chatroom.db.run_in": world.database.run_in,
        "chatroom.db.repeatably": lambda call: call,
        "chatroom.events.room_changed": world.hints.changed,
        "machines.hints.room_changed": world.hints.changed,
        "chatroom.jobs.send_job": world.background.send_job,
        "chatroom.sweep.monotonic": loop.time,
        "chatroom.sweep.side_by_side": lambda calls: [call() for call in calls],
        "agents.waiters.find": lambda agent, connection: None if world.is_elsewhere else find(agent, connection),
        "agents.waiters._by_room": defaultdict(OrderedSet),
        "agents.consumers.random": SimpleNamespace(uniform=world.rng("agent sockets").uniform),
        "machines.consumers.random": SimpleNamespace(uniform=world.rng("machine sockets").uniform),
        "machines.consumers.time": server_time,
        "machines.daemon.link.time": machines.MachineTime(world),
        "machines.daemon.daemon.time": machines.MachineTime(world),
        "machines.daemon.link.random": SimpleNamespace(uniform=world.rng("links").uniform),
        "machines.daemon.link.connect": connector(world),
        "machines.daemon.link.SIGN_OF_LIFE": 8.0,
        "machines.daemon.supervisor.prepare": machines.prepare,
        "machines.daemon.supervisor.launch": machines.launch,
    }


@contextmanager
def simulated(world: "World") -> Iterator[None]:
    alarm = Alarm(world)
    quiet = {name: logging.getLogger(name) for name in ("chatroom", "agents", "machines")}
    levels = {name: (logger.level, logger.propagate) for name, logger in quiet.items()}
    with ExitStack() as stack:
        stack.enter_context(override_settings(**NUMBERS))
        stack.enter_context(patch.dict(os.environ, {"DJANGO_ALLOW_ASYNC_UNSAFE": "1"}))
        for target, replacement in replacements(world).items():
            stack.enter_context(patch(target, replacement))
        # Else each task of the loop would open a connection of its own.
        stack.enter_context(patch.object(connections, "_connections", SimpleNamespace(default=connections["default"])))
        stack.enter_context(patch.object(hub, "callbacks", defaultdict(OrderedSet)))
        stack.enter_context(patch.object(hub, "spawn", lambda coroutine: coroutine.close()))
        for logger in quiet.values():
            logger.addHandler(alarm)
            logger.setLevel(LOUD)
            logger.propagate = False
        try:
            yield
        finally:
            for name, logger in quiet.items():
                logger.removeHandler(alarm)
                logger.level, logger.propagate = levels[name]
