from typing import Self

from django.db import models
from django.db.models import F

from .room import Room
from .task import Task, TaskStatus


class Event(models.Model):
    """What happened, for good: every status change has exactly one. Ids grow in commit order within a room, whose lock the writer holds."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, null=True, blank=True, related_name="events")
    subject = models.CharField(max_length=20, help_text="task, agent, message, room, run, machine, command")
    subject_id = models.BigIntegerField()
    role = models.CharField(max_length=60, blank=True)
    trigger = models.CharField(max_length=40)
    from_state = models.CharField(max_length=24, blank=True)
    to_state = models.CharField(max_length=24, blank=True)
    actor = models.CharField(max_length=150)
    reason = models.TextField(blank=True)
    data = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(fields=["room", "id"], name="event_room"),
            models.Index(fields=["subject", "subject_id", "id"], name="event_subject"),
            models.Index(fields=["created_at"], name="event_created"),
        ]

    def __str__(self) -> str:
        return f"{self.subject} {self.subject_id} {self.trigger}"

    @property
    def name(self) -> str:
        return f"{self.subject}.{self.trigger}"


class NoticeQuerySet(models.QuerySet["Notice"]):
    def open(self) -> Self:
        """Still true: the task it is about waits as it did then."""
        return self.filter(task__status=TaskStatus.PENDING, created_at__gte=F("task__status_since"))


class Notice(models.Model):
    """Something people were told, once per episode."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="notices")
    episode = models.CharField(max_length=120, help_text="What it is about, for example task-waiting:12:2026-11-20T14:02:40.")
    task = models.ForeignKey(Task, on_delete=models.CASCADE, null=True, blank=True, related_name="notices")
    text = models.TextField()
    created_at = models.DateTimeField(auto_now_add=True)
    told_at = models.DateTimeField(null=True, blank=True, help_text="When the worker passed it on to the members.")

    objects = NoticeQuerySet.as_manager()

    class Meta:
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["episode"], name="notice_once_per_episode")]

    def __str__(self) -> str:
        return self.text[:80]
