from typing import Self

from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django_fsm import FSMField, transition

from agents.models import Agent, run_incarnation

from .machine import Machine


class RunState(models.TextChoices):
    VALIDATING = "validating"
    READY = "ready"
    PREPARING = "preparing"
    RUNNING = "running"
    ABORTING = "aborting"
    COMPLETED = "completed"
    FAILED = "failed"


S = RunState
BEFORE_END = [S.VALIDATING, S.READY, S.PREPARING, S.RUNNING]
UNFINISHED = [*BEFORE_END, S.ABORTING]
VERDICTS = ["", "faulty", "transient", "asked", "lost"]


class RunQuerySet(models.QuerySet["Run"]):
    def unfinished(self) -> Self:
        # That it has not ended says the same, in words by which SQLite too finds the index.
        return self.filter(ended_at=None, state__in=UNFINISHED)


class Run(models.Model):
    """One life of one agent process, of one generation. Written by what its daemon reports."""

    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="runs")
    machine = models.ForeignKey(Machine, on_delete=models.PROTECT, related_name="runs")
    generation = models.PositiveIntegerField()
    attempt = models.PositiveIntegerField(default=1)
    request = models.CharField(max_length=64, help_text="The daemon's own id of its wish: the same wish again gets the same run.")
    state = FSMField(choices=S.choices, default=S.VALIDATING, protected=True, editable=False)
    state_since = models.DateTimeField(default=now)
    harness = models.CharField(max_length=60)
    model = models.CharField(max_length=120, blank=True)
    directory = models.CharField(max_length=1000, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    joined_at = models.DateTimeField(null=True, blank=True)
    ended_at = models.DateTimeField(null=True, blank=True)
    stopped_at = models.DateTimeField(null=True, blank=True, help_text="Since when its process is stopped by SIGSTOP.")
    is_frozen = models.BooleanField(default=False)
    exit_code = models.IntegerField(null=True, blank=True)
    signal = models.IntegerField(null=True, blank=True)
    asked = models.CharField(max_length=20, blank=True, help_text="Who asked for its end; empty if nobody did.")
    failure = models.CharField(max_length=20, blank=True)
    verdict = models.CharField(max_length=10, blank=True)
    error_message = models.TextField(blank=True)
    last_lines = models.JSONField(default=list, blank=True)

    objects = RunQuerySet.as_manager()

    class Meta:
        ordering = ["id"]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=S.values), name="run_state_known"),
            models.CheckConstraint(condition=Q(verdict__in=VERDICTS), name="run_verdict_known"),
            models.UniqueConstraint(fields=["agent", "request"], name="run_once_per_request"),
            models.UniqueConstraint(fields=["agent"], condition=Q(state__in=UNFINISHED), name="run_one_unfinished_per_agent"),
        ]
        indexes = [
            models.Index(fields=["ended_at", "machine"], condition=Q(ended_at=None), name="run_unfinished"),
            models.Index(fields=["agent", "ended_at"], name="run_history"),
        ]

    def __str__(self) -> str:
        return f"run {self.pk} of {self.agent}"

    @property
    def room_id(self) -> int:
        return self.agent.room_id

    @property
    def role(self) -> str:
        return self.agent.role

    @property
    def is_finished(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def incarnation(self) -> str:
        return run_incarnation(self.pk)

    @transition(state, source=S.VALIDATING, target=S.READY)
    def validated(self) -> None: ...

    @transition(state, source=S.READY, target=S.PREPARING)
    def prepare(self) -> None: ...

    @transition(state, source=S.PREPARING, target=S.RUNNING)
    def launch(self, *, pid: int | None = None) -> None:
        self.pid, self.started_at = pid, now()

    @transition(state, source=BEFORE_END, target=S.ABORTING)
    def abort(self) -> None: ...

    @transition(state, source=S.RUNNING, target=S.COMPLETED)
    def finish(self) -> None:
        self.ended_at = now()

    @transition(state, source=S.ABORTING, target=S.COMPLETED)
    def aborted(self) -> None:
        self.ended_at = now()

    @transition(state, source=S.ABORTING, target=S.FAILED)
    def timed_out(self) -> None:
        self.ended_at = now()

    @transition(state, source=UNFINISHED, target=S.FAILED)
    def fail(self) -> None:
        self.ended_at = now()


class RunLog(models.Model):
    """The newest part of a run's output, for the panel; the whole stays on its machine."""

    run = models.OneToOneField(Run, on_delete=models.CASCADE, related_name="log")
    text = models.TextField(blank=True)
    end = models.BigIntegerField(default=0, help_text="The offset of the byte after the text.")

    KEPT = 64 * 1024

    def __str__(self) -> str:
        return f"log of run {self.run_id}"
