from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django_fsm import RETURN_VALUE, FSMField, transition

from chatroom.models import Room


class AgentKind(models.TextChoices):
    CUSTOM = "custom"
    REMOTE = "remote"


class AgentStatus(models.TextChoices):
    OFFLINE = "offline", "OFFLINE"
    READY = "ready", "READY"
    WORKING = "working", "WORKING"
    RESTARTING = "restarting", "RESTARTING"
    DEAD = "dead", "DEAD"
    DEAD_FAILED_REVIVE = "dead_failed_revive", "DEAD (UNRECOVERABLE)"


S = AgentStatus
LIVE = [S.READY, S.WORKING]


class AgentQuerySet(models.QuerySet["Agent"]):
    def live(self) -> Self:
        return self.filter(status__in=LIVE)

    def lease_expired(self, status: Any, kind: Any, time: Any) -> Self:
        """Of one status and kind: so the index has them in this order, and nobody else is read, whatever a planner believes."""
        return self.filter(status=status, kind=kind, lease_expires_at__lt=time).order_by("lease_expires_at")

    def needs_attention(self) -> Self:
        return self.filter(status__in=[S.DEAD, S.DEAD_FAILED_REVIVE])


class Agent(models.Model):
    """A role of a room, and whether it can take work now. Knows nothing of machines."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="agents")
    role = models.CharField(max_length=60)
    kind = models.CharField(max_length=6, choices=AgentKind.choices, default=AgentKind.CUSTOM)
    status = FSMField(choices=S.choices, default=S.OFFLINE, protected=True, editable=False)
    status_since = models.DateTimeField(default=now)
    incarnation = models.CharField(max_length=64, blank=True, editable=False, help_text="Which start of its program speaks for it now.")
    connection = models.CharField(max_length=32, blank=True, editable=False, help_text="The newest socket of that start.")
    waiting_since = models.DateTimeField(null=True, blank=True, help_text="Since when that socket waits; empty while it works or is away.")
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    accepts_work = models.BooleanField(default=True, help_text="False while a stop or restart is in flight: nothing is offered.")
    error_message = models.TextField(blank=True, help_text="Why it is dead; kept until the next join.")

    objects = AgentQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.UniqueConstraint(fields=["room", "role"], name="agent_one_per_role"),
            models.CheckConstraint(condition=Q(status__in=S.values), name="agent_status_known"),
            models.CheckConstraint(condition=Q(kind__in=AgentKind.values), name="agent_kind_known"),
            models.CheckConstraint(condition=~Q(status__in=LIVE) | Q(lease_expires_at__isnull=False), name="agent_live_has_lease"),
        ]
        indexes = [
            # Status and kind first: what is due, and what is too far ahead, is one short range for each of them.
            models.Index(fields=["status", "kind", "lease_expires_at"], condition=Q(lease_expires_at__isnull=False), name="agent_lease"),
            models.Index(fields=["status_since"], condition=Q(status=S.DEAD, kind="custom"), name="agent_dead_custom"),
            models.Index(fields=["status_since"], condition=Q(status=S.RESTARTING), name="agent_restarting"),
        ]

    def __str__(self) -> str:
        return f"{self.role} in {self.room}"

    @property
    def is_live(self) -> bool:
        return self.status in LIVE

    @property
    def is_custom(self) -> bool:
        return self.kind == AgentKind.CUSTOM

    @transition(status, source=[S.OFFLINE, S.READY, S.WORKING, S.RESTARTING, S.DEAD, S.DEAD_FAILED_REVIVE], target=S.READY)
    def join(self, *, incarnation: str, lease: datetime) -> None:
        self.incarnation, self.lease_expires_at, self.last_seen_at = incarnation, lease, now()
        self.error_message, self.waiting_since, self.connection = "", None, ""

    @transition(status, source=S.DEAD, target=RETURN_VALUE(S.READY, S.WORKING))
    def resume(self, *, lease: datetime, has_claim: bool) -> str:
        self.lease_expires_at, self.last_seen_at, self.error_message = lease, now(), ""
        return S.WORKING if has_claim else S.READY

    @transition(status, source=S.READY, target=S.WORKING)
    def claim_task(self, *, lease: datetime) -> None:
        self.lease_expires_at, self.waiting_since = lease, None

    @transition(status, source=S.WORKING, target=S.READY)
    def task_complete(self, *, lease: datetime) -> None:
        self.lease_expires_at, self.last_seen_at = lease, now()

    @transition(status, source=S.WORKING, target=S.READY)
    def task_released(self, *, lease: datetime) -> None:
        self.lease_expires_at = lease

    @transition(status, source=[S.READY, S.WORKING, S.RESTARTING, S.DEAD, S.DEAD_FAILED_REVIVE], target=S.OFFLINE)
    def leave(self) -> None:
        self.forget_connection()

    @transition(status, source=LIVE, target=S.DEAD)
    def heartbeat_expired(self, *, error_message: str) -> None:
        self.error_message, self.lease_expires_at, self.waiting_since = error_message, None, None

    @transition(status, source=LIVE, target=S.DEAD)
    def process_exited(self, *, error_message: str) -> None:
        self.forget_connection(error_message=error_message)

    @transition(status, source=[S.OFFLINE, S.DEAD, S.DEAD_FAILED_REVIVE, S.READY, S.WORKING], target=S.RESTARTING)
    def restart_initiated(self) -> None:
        self.forget_connection(error_message=self.error_message)

    @transition(status, source=[S.RESTARTING, S.DEAD, S.OFFLINE], target=S.DEAD_FAILED_REVIVE)
    def restart_exhausted(self, *, error_message: str) -> None:
        self.forget_connection(error_message=error_message)

    @transition(status, source=S.RESTARTING, target=S.DEAD)
    def restart_expired(self, *, error_message: str) -> None:
        self.forget_connection(error_message=error_message)

    @transition(status, source=[S.DEAD, S.DEAD_FAILED_REVIVE], target=S.OFFLINE)
    def cleanup(self) -> None:
        self.forget_connection(error_message=self.error_message)

    def forget_connection(self, *, error_message: str = "") -> None:
        self.error_message, self.incarnation, self.connection = error_message, "", ""
        self.lease_expires_at = self.waiting_since = None


def run_incarnation(run_id: int | None) -> str:
    """A loop agent's incarnation is its run's: each waiting command of the run speaks for the same one."""
    return f"run:{run_id}"


class Incarnation(models.Model):
    """One start of an agent's program. Kept, so that a late reconnect of an older one is known as old and never displaces its successor."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="incarnations")
    key = models.CharField(max_length=64)
    joined_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.CharField(max_length=300, blank=True, help_text="Told to the one that ended: 'a newer start of builder took over'.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["agent", "key"], name="incarnation_once"),
            models.UniqueConstraint(fields=["agent"], condition=Q(ended_at=None), name="incarnation_one_current"),
        ]
        indexes = [models.Index(fields=["ended_at"], name="incarnation_ended")]

    def __str__(self) -> str:
        return f"{self.agent_id}/{self.key[:8]}"
