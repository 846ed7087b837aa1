from typing import Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models
from django.db.models import Q
from django.utils.timezone import now
from django_fsm import FSMField, transition

from agents.models import Agent


class MachineStatus(models.TextChoices):
    CONNECTED = "connected"
    UNRESPONSIVE = "unresponsive"
    DISCONNECTED = "disconnected"


S = MachineStatus


class MachineQuerySet(models.QuerySet["Machine"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """One's own, and those that agents of one's rooms live on."""
        in_my_rooms = Placement.objects.filter(agent__room__membership__user_id=user.pk or 0).values("machine")
        return self.filter(Q(owner_id=user.pk) | Q(pk__in=in_my_rooms), revoked_at=None)

    def owned_by(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        return self.filter(owner_id=user.pk, revoked_at=None)

    def awaited(self, registration: str) -> Self:
        """The one that a daemon registered with this id and that never came: the answer with its token may have been lost."""
        return self.filter(registration=registration, last_seen_at=None, revoked_at=None).exclude(registration="")


class Machine(models.Model):
    """A computer with a daemon that looks after agents. What it offers (harnesses, directories) is what its own configuration says."""

    name = models.CharField(max_length=60)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="machines")
    status = FSMField(choices=S.choices, default=S.DISCONNECTED, protected=True, editable=False)
    status_since = models.DateTimeField(default=now)
    last_seen_at = models.DateTimeField(null=True, blank=True)
    registration = models.CharField(max_length=64, blank=True, editable=False, help_text="The daemon's own id for its trying to register.")
    instance = models.CharField(max_length=64, blank=True, editable=False, help_text="The daemon process that speaks for it.")
    connection = models.CharField(max_length=32, blank=True, editable=False, help_text="The newest socket of that process.")
    platform = models.CharField(max_length=120, blank=True)
    version = models.CharField(max_length=40, blank=True)
    slots = models.PositiveIntegerField(default=5)
    harnesses = models.JSONField(default=list, blank=True)
    allow_dirs = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = MachineQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["name"], condition=Q(revoked_at=None), name="machine_name_once"),
            models.CheckConstraint(condition=Q(status__in=S.values), name="machine_status_known"),
        ]
        indexes = [models.Index(fields=["last_seen_at"], condition=~Q(status=S.DISCONNECTED), name="machine_seen")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_connected(self) -> bool:
        return self.status != S.DISCONNECTED

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None

    @transition(status, source=[S.UNRESPONSIVE, S.DISCONNECTED], target=S.CONNECTED)
    def connect(self) -> None: ...

    @transition(status, source=S.CONNECTED, target=S.UNRESPONSIVE)
    def miss(self) -> None: ...

    @transition(status, source=[S.CONNECTED, S.UNRESPONSIVE], target=S.DISCONNECTED)
    def disconnect(self) -> None:
        self.connection = ""


class Mode(models.TextChoices):
    LOOP = "loop"
    TASK = "task"


class Desired(models.TextChoices):
    ON_DEMAND = "on_demand", "on demand"
    RUNNING = "running"
    STOPPED = "stopped"


class Placement(models.Model):
    """Where a remote agent lives, how it is started, and what people want of it."""

    agent = models.OneToOneField(Agent, on_delete=models.CASCADE, related_name="placement")
    machine = models.ForeignKey(Machine, on_delete=models.PROTECT, related_name="placements")
    harness = models.CharField(max_length=60)
    model = models.CharField(max_length=120, blank=True)
    directory = models.CharField(max_length=1000, blank=True)
    mode = models.CharField(max_length=4, choices=Mode.choices, default=Mode.LOOP)
    desired_state = models.CharField(max_length=9, choices=Desired.choices, default=Desired.ON_DEMAND)
    desired_by = models.CharField(max_length=150, blank=True)
    generation = models.PositiveIntegerField(default=0, help_text="Grows with each stop, restart and new start: the highest wins.")
    exhausted_generation = models.PositiveIntegerField(null=True, blank=True, help_text="Nothing automatic starts this generation again.")
    current_run = models.ForeignKey("Run", on_delete=models.SET_NULL, null=True, blank=True, related_name="+")
    restart_attempt = models.PositiveIntegerField(default=0)
    restart_attempts = models.PositiveIntegerField(default=0)
    restart_at = models.DateTimeField(null=True, blank=True, help_text="The end of the wait that the daemon announced.")
    restart_noted_at = models.DateTimeField(
        null=True, blank=True, help_text="The latest word about its start: the deadline counts from here."
    )
    history_since = models.DateTimeField(default=now, help_text="A person's start forgets the exits before it.")
    moving = models.JSONField(null=True, blank=True, help_text="What it is to become once its process has ended, and at whose wish.")

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(desired_state__in=Desired.values), name="placement_desired_known"),
            models.CheckConstraint(condition=Q(mode__in=Mode.values), name="placement_mode_known"),
        ]
        indexes = [models.Index(fields=["machine", "agent"], name="placement_machine")]

    def __str__(self) -> str:
        return f"{self.agent} on {self.machine}"

    @property
    def is_stopped(self) -> bool:
        return self.desired_state == Desired.STOPPED

    @property
    def is_exhausted(self) -> bool:
        return self.exhausted_generation == self.generation

    def forget_wait(self) -> None:
        self.restart_attempt = self.restart_attempts = 0
        self.restart_at = None
