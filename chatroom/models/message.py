from django.conf import settings
from django.db import models

from .room import Room


class MessageKind(models.TextChoices):
    CHAT = "chat"
    HANDOFF = "handoff"
    RESULT = "result"
    FAILURE = "failure"
    PROGRESS = "progress"
    LATE_RESULT = "late_result", "late result"
    NOTICE = "notice"


class Message(models.Model):
    """Something said in a room by a person, an agent (by its role) or the system. Never changed, never deleted."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="messages")
    kind = models.CharField(max_length=12, choices=MessageKind.choices, default=MessageKind.CHAT)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, blank=True)
    sender = models.CharField(max_length=150, help_text="A person's name, an agent's role, or 'chatroom'.")
    to = models.CharField(max_length=60, blank=True, help_text="A role, 'user', or nothing.")
    text = models.TextField()
    task = models.ForeignKey(
        "Task", on_delete=models.SET_NULL, null=True, blank=True, related_name="said", help_text="The task it speaks about."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["room", "id"], name="message_room"), models.Index(fields=["task", "id"], name="message_task")]
        constraints = [models.CheckConstraint(condition=models.Q(kind__in=MessageKind.values), name="message_kind_known")]

    def __str__(self) -> str:
        return f"{self.sender}: {self.text[:60]}"
