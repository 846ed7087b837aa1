import re
from typing import Self

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.db import models

SLUG = re.compile(r"[a-zA-Z][\w-]{0,79}", re.ASCII)
TEAMS = {"solo": ["builder"], "pair": ["builder", "reviewer"], "squad": ["planner", "builder", "reviewer"]}


class RoomQuerySet(models.QuerySet["Room"]):
    def visible_to(self, user: AbstractBaseUser | AnonymousUser) -> Self:
        """The rooms this person is a member of; a stranger's queries find nothing."""
        return self.filter(membership__user_id=user.pk)

    def find(self, room: str | int) -> "Room":
        """By id or slug. Slugs start with a letter, so the two can't be mistaken. Raises Room.DoesNotExist."""
        if str(room).isdecimal():
            return self.get(pk=min(int(room), 2**63 - 1)) if len(str(room)) < 20 else self.none().get()
        return self.get(slug=room) if SLUG.fullmatch(str(room)) else self.none().get()


class Room(models.Model):
    slug = models.SlugField(max_length=80, unique=True)
    name = models.CharField(max_length=120)
    team = models.JSONField(help_text="The roles in the order in which work travels; the first is the entry point.")
    fail_fast = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Membership", related_name="rooms")

    objects = RoomQuerySet.as_manager()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.slug

    @property
    def entry_role(self) -> str:
        return self.team[0]

    @property
    def team_name(self) -> str:
        return next((name for name, roles in TEAMS.items() if roles == self.team), "team")


class MemberRole(models.TextChoices):
    OWNER = "owner"
    MEMBER = "member"
    VIEWER = "viewer"


class Membership(models.Model):
    room = models.ForeignKey(Room, on_delete=models.CASCADE)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    role = models.CharField(max_length=10, choices=MemberRole.choices, default=MemberRole.MEMBER)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["room", "user"], name="membership_one_per_person"),
            models.CheckConstraint(condition=models.Q(role__in=MemberRole.values), name="membership_role_known"),
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.room} as {self.role}"

    @property
    def can_act(self) -> bool:
        return self.role != MemberRole.VIEWER
