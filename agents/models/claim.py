import secrets
from typing import Self

from django.db import models
from django.db.models import Q

from chatroom.models import Task

from .agent import Agent


class Outcome(models.TextChoices):
    COMPLETED = "completed"
    FAILED = "failed"
    UNDELIVERED = "undelivered"
    LEASE_EXPIRED = "lease_expired", "lease ran out"
    LEFT = "left"
    SUPERSEDED = "superseded", "a newer start took over"
    PROCESS_EXITED = "process_exited", "process exited"
    RESTARTED = "restarted"
    RESET = "reset"
    CANCELLED = "cancelled"
    FORCED = "forced", "completed by a person"
    ABORTED = "aborted"


def new_claim_key() -> str:
    return f"c_{secrets.token_urlsafe(18)}"


class ClaimQuerySet(models.QuerySet["Claim"]):
    def open(self) -> Self:
        return self.filter(ended_at=None)


class Claim(models.Model):
    """One agent's hold on one attempt of a task. Its key is the fencing token that every later call presents."""

    key = models.CharField(max_length=40, unique=True, default=new_claim_key, editable=False)
    task = models.ForeignKey(Task, on_delete=models.CASCADE, related_name="claims")
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="claims")
    incarnation = models.CharField(max_length=64)
    attempt = models.PositiveIntegerField()
    round = models.PositiveIntegerField()
    offered_at = models.DateTimeField(auto_now_add=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    outcome = models.CharField(max_length=14, choices=Outcome.choices, blank=True)
    ended_by = models.CharField(max_length=150, blank=True)

    objects = ClaimQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["task"], condition=Q(ended_at=None), name="claim_one_open_per_task"),
            models.UniqueConstraint(fields=["agent"], condition=Q(ended_at=None), name="claim_one_open_per_agent"),
            models.UniqueConstraint(fields=["task", "attempt"], name="claim_one_per_attempt"),
            models.UniqueConstraint(
                fields=["task", "round"], condition=Q(outcome=Outcome.COMPLETED), name="claim_one_completion_per_round"
            ),
            models.CheckConstraint(condition=Q(outcome__in=["", *Outcome.values]), name="claim_outcome_known"),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, outcome="") | (Q(ended_at__isnull=False) & ~Q(outcome="")),
                name="claim_ended_has_outcome",
            ),
        ]
        indexes = [models.Index(fields=["agent", "id"], name="claim_agent")]

    def __str__(self) -> str:
        return f"claim of {self.task} by {self.agent}"

    @property
    def is_open(self) -> bool:
        return self.ended_at is None
