from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django_fsm import RETURN_VALUE, FSMField, transition

from .message import Message
from .room import Room


class TaskStatus(models.TextChoices):
    BACKLOG = "backlog"
    QUEUED = "queued"
    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    IN_PROGRESS = "in_progress", "in progress"
    PENDING_USER_REVIEW = "pending_user_review", "pending your review"
    COMPLETED = "completed"
    CLOSED = "closed"
    FAILED = "failed"


S = TaskStatus
# The one definition of *active*: every busy check, the constraint and the promotion use it.
ACTIVE = [S.PENDING, S.ACKNOWLEDGED, S.IN_PROGRESS]
HELD = [S.ACKNOWLEDGED, S.IN_PROGRESS]
UNFINISHED = [S.BACKLOG, S.QUEUED, *ACTIVE, S.PENDING_USER_REVIEW]
OPEN_ENDED = [*UNFINISHED, S.FAILED]


class Origin(models.TextChoices):
    MESSAGE = "message"
    BACKLOG = "backlog"


def is_backlog_item(task: Any) -> bool:
    return bool(task.origin == Origin.BACKLOG)


def patience_of(status: str) -> float | None:
    """Seconds after which the sweep looks at a task that is still in it; None: no timer concerns it."""
    return {S.PENDING: settings.TASK_PENDING_TIMEOUT, S.ACKNOWLEDGED: settings.TASK_ACKNOWLEDGED_TIMEOUT}.get(S(status))


class TaskQuerySet(models.QuerySet["Task"]):
    def active(self) -> Self:
        return self.filter(status__in=ACTIVE)

    def unfinished(self) -> Self:
        return self.filter(status__in=UNFINISHED)

    def next_in_queue(self) -> Self:
        return self.filter(status=S.QUEUED).order_by("-priority", "id")


class Task(models.Model):
    """A piece of work for one role of a room. Its status is changed by declared transitions only, under the room's lock."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="tasks")
    message = models.ForeignKey(Message, on_delete=models.PROTECT, related_name="tasks", help_text="The message that is its text.")
    chain = models.ForeignKey(Message, on_delete=models.PROTECT, related_name="chain_tasks", help_text="The message that began the chain.")
    assigned_role = models.CharField(max_length=60)
    status = FSMField(choices=S.choices, protected=True, editable=False)
    status_since = models.DateTimeField(default=now)
    origin = models.CharField(max_length=8, choices=Origin.choices, default=Origin.MESSAGE)
    title = models.CharField(max_length=120)
    priority = models.IntegerField(default=0)
    attempt = models.PositiveIntegerField(default=0, help_text="How often it was claimed.")
    crashes = models.PositiveIntegerField(default=0, help_text="Faulty exits while it was held.")
    round = models.PositiveIntegerField(default=1, help_text="Counts send_back, retry and reopen: one accepted completion in each.")
    failure_reason = models.TextField(blank=True)
    look_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When the sweep looks at it next; empty: no timer concerns it."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = TaskQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=S.values), name="task_status_known"),
            models.CheckConstraint(condition=Q(origin__in=Origin.values), name="task_origin_known"),
            models.UniqueConstraint(fields=["room", "assigned_role"], condition=Q(status__in=ACTIVE), name="task_one_active_per_role"),
        ]
        indexes = [
            models.Index(fields=["room", "assigned_role", "-priority", "id"], condition=Q(status=S.QUEUED), name="task_queue"),
            models.Index(fields=["room", "id"], condition=Q(status__in=OPEN_ENDED), name="task_open_ended"),
            models.Index(fields=["room", "status", "id"], name="task_room_status"),
            # Whether a role is free, and what waits for it. (SQLite can't use a partial index for a list of statuses.)
            models.Index(fields=["room", "assigned_role", "status"], name="task_role"),
            models.Index(fields=["status_since"], condition=Q(status=S.PENDING), name="task_pending"),
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="task_look"),
            models.Index(fields=["chain", "id"], name="task_chain"),
        ]

    def __str__(self) -> str:
        return f"task {self.pk}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.prepare_to_save()
        super().save(*args, **kwargs)

    def prepare_to_save(self) -> None:
        self.look_at = self.plan_look()

    def plan_look(self) -> datetime | None:
        """What stays too long in a status that somebody should end is looked at by the sweep, nothing else is: that keeps it cheap."""
        patience = patience_of(self.status)
        return None if patience is None else self.status_since + timedelta(seconds=patience)

    @property
    def is_held(self) -> bool:
        return self.status in HELD

    @property
    def text(self) -> str:
        return self.message.text

    @transition(status, source=S.BACKLOG, target=RETURN_VALUE(S.PENDING, S.QUEUED))
    def move_to_queue(self, *, role_is_free: bool) -> str:
        return S.PENDING if role_is_free else S.QUEUED

    @transition(status, source=S.QUEUED, target=S.PENDING)
    def promote(self) -> None: ...

    @transition(status, source=S.PENDING, target=S.ACKNOWLEDGED)
    def claim_task(self) -> None:
        self.attempt += 1

    @transition(status, source=S.ACKNOWLEDGED, target=S.IN_PROGRESS)
    def start_task(self) -> None: ...

    @transition(status, source=S.PENDING, target=RETURN_VALUE(S.ACKNOWLEDGED, S.IN_PROGRESS))
    def resume_task(self, *, had_started: bool) -> str:
        return S.IN_PROGRESS if had_started else S.ACKNOWLEDGED

    @transition(status, source=HELD, target=RETURN_VALUE(S.COMPLETED, S.PENDING_USER_REVIEW))
    def complete_task(self, *, ends_chain: bool) -> str:
        return S.PENDING_USER_REVIEW if ends_chain and self.origin == Origin.BACKLOG else S.COMPLETED

    @transition(status, source=S.PENDING_USER_REVIEW, target=S.COMPLETED)
    def approve(self) -> None: ...

    @transition(status, source=S.PENDING_USER_REVIEW, target=RETURN_VALUE(S.PENDING, S.QUEUED))
    def send_back(self, *, role_is_free: bool) -> str:
        self.begin_round()
        return S.PENDING if role_is_free else S.QUEUED

    @transition(status, source=S.ACKNOWLEDGED, target=S.PENDING)
    def recover_stuck_acknowledged(self) -> None: ...

    @transition(status, source=S.IN_PROGRESS, target=S.PENDING)
    def recover_orphaned(self) -> None: ...

    @transition(status, source=HELD, target=S.PENDING)
    def reset(self) -> None: ...

    @transition(status, source=HELD, target=S.FAILED)
    def fail_task(self, *, failure_reason: str) -> None:
        self.failure_reason = failure_reason

    @transition(status, source=S.FAILED, target=RETURN_VALUE(S.PENDING, S.QUEUED))
    def retry(self, *, role_is_free: bool) -> str:
        self.begin_round()
        self.failure_reason = ""
        return S.PENDING if role_is_free else S.QUEUED

    @transition(status, source=OPEN_ENDED, target=S.CLOSED)
    def cancel_task(self) -> None: ...

    @transition(status, source=OPEN_ENDED, target=S.COMPLETED)
    def force_complete(self) -> None: ...

    @transition(status, source=[S.COMPLETED, S.CLOSED], target=S.PENDING_USER_REVIEW, conditions=[is_backlog_item])
    def reopen(self) -> None:
        self.begin_round()

    def begin_round(self) -> None:
        """A person wants it once more: what crashed before says nothing about that."""
        self.round, self.crashes = self.round + 1, 0
