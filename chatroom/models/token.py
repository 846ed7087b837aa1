import hashlib
import secrets
from datetime import datetime
from typing import Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.timezone import now

from .room import Room


def hash_secret(secret: str) -> str:
    """SHA-256 is enough: the secrets are 256 random bits, not passwords."""
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenKind(models.TextChoices):
    PERSON = "person"
    AGENT = "agent"
    MACHINE = "machine"
    SIGN_IN = "sign_in", "one-time sign-in link"
    ENROLMENT = "enrolment", "one-time enrolment of a machine"


ONE_TIME = [TokenKind.SIGN_IN, TokenKind.ENROLMENT]


class TokenQuerySet(models.QuerySet["Token"]):
    def usable(self) -> Self:
        return self.filter(revoked_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=now()))

    def issue(self, *, kind: str, name: str, expires_at: datetime | None = None, **scope: object) -> tuple["Token", str]:
        """A new token and its secret, which is stored nowhere."""
        secret = f"chatroom_{kind}_{secrets.token_urlsafe(32)}"
        return self.create(kind=kind, name=name, hash=hash_secret(secret), expires_at=expires_at, **scope), secret


class Token(models.Model):
    """A bearer token, stored hashed. A person's acts for the person, an agent's for one role and run, a machine's for one machine."""

    kind = models.CharField(max_length=9, choices=TokenKind.choices)
    name = models.CharField(max_length=120, help_text="Shown to people, for example the device it was given to.")
    hash = models.CharField(max_length=64, unique=True, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True, related_name="tokens")
    room = models.ForeignKey(Room, on_delete=models.CASCADE, null=True, blank=True, related_name="tokens")
    role = models.CharField(max_length=60, blank=True)
    subject_id = models.BigIntegerField(null=True, blank=True, help_text="The run of an agent's token, the machine of a machine's.")
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = TokenQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(kind__in=TokenKind.values), name="token_kind_known"),
            models.CheckConstraint(
                condition=~Q(kind__in=["person", "sign_in", "enrolment"]) | Q(user__isnull=False), name="token_person_has_user"
            ),
            models.CheckConstraint(condition=~Q(kind="agent") | (Q(room__isnull=False) & ~Q(role="")), name="token_agent_has_role"),
            models.CheckConstraint(condition=~Q(kind="machine") | Q(subject_id__isnull=False), name="token_machine_has_machine"),
        ]
        indexes = [models.Index(fields=["kind", "subject_id"], name="token_subject")]

    def __str__(self) -> str:
        return f"{self.kind} token {self.name}"


class GrantState(models.TextChoices):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    USED = "used"


class DeviceGrant(models.Model):
    """One sign-in of a terminal (RFC 8628): a person compares a short code and approves; single use, 10 minutes."""

    device_hash = models.CharField(max_length=64, unique=True, editable=False)
    user_code = models.CharField(max_length=9, unique=True)
    client = models.CharField(max_length=120)
    state = models.CharField(max_length=8, choices=GrantState.choices, default=GrantState.PENDING)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=Q(state__in=GrantState.values), name="grant_state_known")]

    def __str__(self) -> str:
        return f"sign-in of {self.client}"
