from typing import Self

from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django_fsm import FSMField, transition

from agents.models import Agent

from .machine import Machine
from .run import Run


class Act(models.TextChoices):
    START = "start_agent", "start"
    STOP = "stop_agent", "stop"
    RESTART = "restart_agent", "restart"
    ABORT = "abort_run", "abort"
    PING = "ping"
    STATUS = "status"


class CommandState(models.TextChoices):
    PENDING = "pending"
    DISPATCHED = "dispatched"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


S = CommandState
IN_FLIGHT = [S.PENDING, S.DISPATCHED]
STARTS = [Act.START, Act.RESTART]
SHORT_LIVED = [Act.PING, Act.STATUS]


class CommandQuerySet(models.QuerySet["Command"]):
    def in_flight(self) -> Self:
        # That it has not ended says the same, in words by which SQLite too finds the index.
        return self.filter(ended_at=None, state__in=IN_FLIGHT)

    def starts(self) -> Self:
        return self.filter(act__in=STARTS)


class Command(models.Model):
    """What a person, or the system, asked a machine to do, and how that ended. The daemon acts on the desired state; this is shown."""

    machine = models.ForeignKey(Machine, on_delete=models.CASCADE, related_name="commands")
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, null=True, blank=True, related_name="commands")
    run = models.ForeignKey(Run, on_delete=models.CASCADE, null=True, blank=True, related_name="commands")
    act = models.CharField(max_length=14, choices=Act.choices)
    generation = models.PositiveIntegerField(default=0)
    state = FSMField(choices=S.choices, default=S.PENDING, protected=True, editable=False)
    actor = models.CharField(max_length=150)
    outcome = models.TextField(blank=True, help_text="Why it failed, or what it found.")
    answer = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    dispatched_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = CommandQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=S.values), name="command_state_known"),
            models.CheckConstraint(condition=Q(act__in=Act.values), name="command_act_known"),
            models.UniqueConstraint(fields=["agent"], condition=Q(state__in=IN_FLIGHT, act__in=STARTS), name="command_one_start_in_flight"),
        ]
        indexes = [
            models.Index(fields=["ended_at", "machine"], condition=Q(ended_at=None), name="command_in_flight"),
            models.Index(fields=["agent", "-id"], name="command_agent"),
        ]

    def __str__(self) -> str:
        return f"{self.act} of {self.agent or self.machine}"

    @property
    def room_id(self) -> int | None:
        return self.agent.room_id if self.agent else None

    @property
    def role(self) -> str:
        return self.agent.role if self.agent else ""

    @transition(state, source=S.PENDING, target=S.DISPATCHED)
    def dispatch(self) -> None:
        self.dispatched_at = now()

    @transition(state, source=IN_FLIGHT, target=S.COMPLETED)
    def complete(self, *, outcome: str = "") -> None:
        self.outcome, self.ended_at = outcome, now()

    @transition(state, source=IN_FLIGHT, target=S.FAILED)
    def fail(self, *, outcome: str) -> None:
        self.outcome, self.ended_at = outcome, now()

    @transition(state, source=IN_FLIGHT, target=S.CANCELLED)
    def cancel(self, *, outcome: str) -> None:
        self.outcome, self.ended_at = outcome, now()

    @transition(state, source=IN_FLIGHT, target=S.EXPIRED)
    def expire(self, *, outcome: str) -> None:
        self.outcome, self.ended_at = outcome, now()
