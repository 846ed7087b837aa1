"""Sixteen threads, or sixteen processes, that do the same thing at the same instant, each on a database connection of its own."""

import multiprocessing
import multiprocessing.dummy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import django
import pytest  # noqa: F401  (by it the settings know, in a process of its own too, that this is a test)
from django.apps import apps

if not apps.ready:  # in the process that the racing processes are forked from
    django.setup()

from django.conf import settings
from django.contrib.auth.models import User
from django.db import IntegrityError, connection

from agents.models import Agent, Claim
from agents.services import complete_task, join_agent, offer_next, renew_lease
from agents.services.claims import claim_task, lock_agent
from agents.services.presence import Hello
from chatroom import events
from chatroom.errors import ChatroomError
from chatroom.idempotency import Once
from chatroom.models import Room, TokenKind
from chatroom.principals import Principal
from chatroom.services.messages import send_message
from chatroom.services.rooms import create_room, room_locked
from chatroom.services.tasks import lock_task, promote_next
from chatroom.services.tokens import redeem_device_code, redeem_sign_in_link

NUMBER = 16
START_WITHIN = 60


@dataclass
class Act:
    """What racers do: all with the same arguments, or each with its own."""

    function: Callable[..., Any]
    arguments: Sequence[tuple[Any, ...]]

    def of_racer(self, number: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments[number % len(self.arguments)]


def act(function: Callable[..., Any], *arguments: tuple[Any, ...]) -> Act:
    return Act(function, arguments)


def compete(pipe: Any, barrier: Any, database: str) -> None:
    """Does what it is told, until told nothing: all racers begin at once."""
    connection.settings_dict["NAME"] = database
    events.room_changed = lambda room_id: None  # nobody waits for hints here
    while (jobs := pipe.recv()) is not None:
        connection.ensure_connection()
        barrier.wait(START_WITHIN)
        pipe.send([attempt(function, arguments) for function, arguments in jobs])
    connection.close()


def attempt(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """A refusal is an answer too: its name."""
    try:
        return function(*arguments)
    except ChatroomError as refusal:
        return type(refusal).__name__
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Racers:
    def __init__(self, context: Any) -> None:
        self.barrier = context.Barrier(NUMBER)
        self.pipes: list[Any] = []
        self.runners: list[Any] = []
        for _ in range(NUMBER):
            here, there = context.Pipe()
            runner = context.Process(target=compete, args=(there, self.barrier, connection.settings_dict["NAME"]))
            runner.start()
            self.pipes.append(here)
            self.runners.append(runner)

    def race(self, *acts: Act) -> list[tuple[Any, ...]]:
        """For each act the answers, one of each racer."""
        for number, pipe in enumerate(self.pipes):
            pipe.send([act.of_racer(number) for act in acts])
        return list(zip(*[pipe.recv() for pipe in self.pipes], strict=True))

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for runner in self.runners:
            runner.join()


@contextmanager
def racers(kind: str) -> Iterator[Racers]:
    hinting = events.room_changed
    started = Racers(multiprocessing.dummy if kind == "threads" else processes())
    try:
        yield started
    finally:
        started.end()
        events.room_changed = hinting


def processes() -> Any:
    """Forked from a fresh process that has loaded everything and opened nothing."""
    os.environ["CHATROOM_HOME"] = str(settings.CHATROOM_HOME)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def person(user_id: int) -> Principal:
    return Principal(0, TokenKind.PERSON, User.objects.get(pk=user_id), None, "", None)


def join(room_id: int, user_id: int, role: str, incarnation: str, joined: bool) -> str:
    hello = Hello(role=role, incarnation=incarnation, connection=incarnation, joined=joined)
    join_agent(Room.objects.get(pk=room_id), hello=hello, principal=person(user_id))
    return "joined"


def renew(agent_id: int, incarnation: str) -> bool:
    return renew_lease(agent_id, incarnation=incarnation)


def claim(room_id: int, agent_id: int, task_id: int) -> str:
    with room_locked(room_id) as room:
        return claim_task(room, lock_agent(room_id, pk=agent_id), lock_task(room, task_id)).key


def claim_without_any_lock(room_id: int, agent_id: int, task_id: int) -> str:
    """What only the constraints decide."""
    try:
        return Claim.objects.create(task_id=task_id, agent_id=agent_id, incarnation="x", attempt=1, round=1).key
    except IntegrityError:
        return "IntegrityError"


def look(room_id: int, agent_id: int) -> str | None:
    """What a waiting socket does at each wake: several may come at once."""
    incarnation, connection_key = Agent.objects.values_list("incarnation", "connection").get(pk=agent_id)
    offer = offer_next(agent_id, room_id=room_id, incarnation=incarnation, connection=connection_key)
    return offer.claim if offer else None


def promote(room_id: int, role: str) -> int | None:
    with room_locked(room_id):
        task = promote_next(room_id, role=role)
        return task.pk if task else None


def complete(room_id: int, claim_key: str, user_id: int) -> str:
    return str(complete_task(room_id, claim_key, text="done", principal=person(user_id)).task.status)


def send_once(room_id: int, user_id: int, key: str) -> int:
    """The same request, sent by an impatient client."""
    author = User.objects.get(pk=user_id)

    def effect() -> tuple[int, Any]:
        return 201, {"task": send_message(room_id, text="do it", author=author).task.pk}

    return int(Once(f"user:{user_id}", "send_message", key, {"text": "do it"}).run(effect)[1]["task"])


def create_rooms(user_id: int, name: str) -> str:
    return create_room(name, team="solo", owner=User.objects.get(pk=user_id)).slug


def redeem_link(secret: str) -> str:
    return redeem_sign_in_link(secret).username


def redeem_device(device_code: str) -> str:
    return redeem_device_code(device_code)[0].name
