from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.db.models import Q
from django.utils.timezone import now


class JobState(models.TextChoices):
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"


class Job(models.Model):
    """Work for the Celery worker. The row is the truth; the Celery message only a hint, sent again by the sweep until the row is done."""

    kind = models.CharField(max_length=40)
    payload = models.JSONField(default=dict)
    state = models.CharField(max_length=7, choices=JobState.choices, default=JobState.WAITING)
    attempts = models.PositiveIntegerField(default=0)
    due_at = models.DateTimeField(default=now, help_text="Not run before this time.")
    sent_at = models.DateTimeField(default=now, help_text="When the worker was last told of it.")
    created_at = models.DateTimeField(auto_now_add=True)
    done_at = models.DateTimeField(null=True, blank=True)
    last_error = models.TextField(blank=True)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_known")]
        indexes = [models.Index(fields=["sent_at"], condition=Q(state=JobState.WAITING), name="job_waiting")]

    def __str__(self) -> str:
        return f"job {self.pk} {self.kind}"


class IdempotencyRecord(models.Model):
    """The answer a principal's act got, kept for a repeat; written in the transaction of the effect."""

    principal = models.CharField(max_length=80)
    act = models.CharField(max_length=200)
    key = models.CharField(max_length=200)
    body_hash = models.CharField(max_length=64)
    status_code = models.PositiveSmallIntegerField()
    answer = models.JSONField(encoder=DjangoJSONEncoder)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["principal", "act", "key"], name="idempotency_once")]
        indexes = [models.Index(fields=["created_at"], name="idempotency_created")]

    def __str__(self) -> str:
        return f"{self.principal} {self.act} {self.key}"


class Pulse(models.Model):
    """One row. `beat_at`: some web process lived then. Until `quiet_until` no timer declares anything dead."""

    beat_at = models.DateTimeField(default=now)
    quiet_until = models.DateTimeField(default=now)
    missed_seconds = models.FloatField(
        default=0, help_text="How long nobody could report, in outages whose time leases were not given back yet."
    )
    swept_at = models.DateTimeField(default=now)

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(pk=1), name="pulse_single")]

    def __str__(self) -> str:
        return f"pulse of {self.beat_at:%H:%M:%S}"
