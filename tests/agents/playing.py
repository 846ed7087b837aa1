"""The steps of an agent's program, at the level of the services."""

import secrets
from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User
from django.db.models import Model

from agents.models import Agent, Claim
from agents.services import confirm_delivery, disconnect_agent, offer_next, renew_lease, show_life, start_task
from agents.services.claims import Offer
from agents.services.presence import Hello, join_agent
from chatroom.models import Event, Message, Room, Task
from tests.factories import principal_of


@dataclass
class Program:
    """One start of a role's waiting command, played by a person in a terminal."""

    room: Room
    user: User
    role: str = "builder"
    incarnation: str = ""
    connection: str = ""

    def connect(self) -> "Program":
        is_new = not self.incarnation
        self.incarnation, self.connection = self.incarnation or secrets.token_hex(8), secrets.token_hex(8)
        hello = Hello(role=self.role, incarnation=self.incarnation, connection=self.connection, joined=not is_new)
        join_agent(self.room, hello=hello, principal=principal_of(self.user))
        return self

    @property
    def agent(self) -> Agent:
        return Agent.objects.get(room=self.room, role=self.role)

    def look(self) -> Offer | None:
        return offer_next(self.agent.pk, room_id=self.room.pk, incarnation=self.incarnation, connection=self.connection)

    def renew(self) -> str:
        if renew_lease(self.agent.pk, incarnation=self.incarnation):
            return "ok"
        return show_life(self.agent.pk, room_id=self.room.pk, incarnation=self.incarnation)

    def end(self, *, planned: bool) -> None:
        disconnect_agent(self.agent.pk, incarnation=self.incarnation, connection=self.connection, is_planned=planned)

    def take(self, *, start: bool = True) -> str:
        """The offered task, received and, unless told otherwise, started. Returns its claim."""
        offer = self.look()
        assert offer is not None
        assert confirm_delivery(offer.claim, room_id=self.room.pk, incarnation=self.incarnation)
        self.end(planned=True)
        if start:
            start_task(self.room.pk, offer.claim, principal=principal_of(self.user))
        return offer.claim


def take(room: Room, user: User, role: str = "builder", *, start: bool = True) -> str:
    """Joins as the role and takes its task. Returns the claim."""
    return Program(room, user, role).connect().take(start=start)


def task_of(claim: str) -> Task:
    return Claim.objects.select_related("task").get(key=claim).task


def triggers(subject: Task | Agent) -> list[str]:
    """What happened to it, in order."""
    kind = type(subject)._meta.model_name
    return list(Event.objects.filter(subject=kind, subject_id=subject.pk).values_list("trigger", flat=True))


def statuses(room: Room) -> list[tuple[str, str]]:
    return list(Task.objects.filter(room=room).values_list("assigned_role", "status"))


def everything(*, but: type[Model] | None = None) -> tuple[object, ...]:
    """All that a refused act must leave as it was. (A refused call of an agent may still move its lease: but=Agent.)"""
    kinds: tuple[Any, ...] = (Room, Task, Agent, Claim, Event, Message)
    return tuple(list(kind.objects.order_by("pk").values()) for kind in kinds if kind is not but)
