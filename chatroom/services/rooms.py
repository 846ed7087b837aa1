import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.text import slugify

from chatroom import signals
from chatroom.errors import Invalid, NotAllowed, NotFound, Unavailable
from chatroom.events import record_event
from chatroom.models import MemberRole, Membership, Room
from chatroom.models.room import TEAMS
from chatroom.prepared import Prepared
from chatroom.unit import one_unit

ROLE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")
RESERVED = {"user", "chatroom"}
MAX_ROLES = 1000
ATTEMPTS = 20


@contextmanager
def room_locked(room_id: int) -> Iterator[Room]:
    """A transaction that holds the room's row: whoever changes a status in the room queues up here. (SQLite serialises writers itself.)"""
    with one_unit() as unit:
        if room_id not in unit.rooms:
            unit.rooms[room_id] = LOCKED_ROOM.first(room=room_id)
        if unit.rooms[room_id] is None:
            raise NotFound(f"there is no room {room_id}", code="no_such_room")
        yield unit.rooms[room_id]


LOCKED_ROOM = Prepared[Room](lambda room: Room.objects.filter(pk=room).select_for_update(of=("self",)).order_by())


def create_room(name: str, *, team: str | list[str], fail_fast: bool = False, owner: User) -> Room:
    name, roles = clean_name(name), read_team(team)
    for _ in range(ATTEMPTS):
        # Two rooms of the same name at the same instant find the same slug free: the second one looks again.
        with suppress(IntegrityError):
            return insert_room(name, roles, fail_fast=fail_fast, owner=owner)
    raise Unavailable(f"no free address was found for room {name!r}: try again")


def insert_room(name: str, roles: list[str], *, fail_fast: bool, owner: User) -> Room:
    with transaction.atomic():
        room = Room.objects.create(slug=free_slug(name), name=name, team=roles, fail_fast=fail_fast)
        Membership.objects.create(room=room, user=owner, role=MemberRole.OWNER)
        signals.room_created.send(Room, room=room)
        record_event(room, "create", actor=owner.get_username(), room_id=room.pk, data={"team": roles})
    return room


def add_member(room: Room, *, user: User, role: str, actor: str) -> Membership:
    """Adds a person, or changes what they may do. A room keeps at least one owner."""
    if role not in MemberRole.values:
        raise Invalid(f"role {role!r}: expected one of {', '.join(MemberRole.values)}", allowed=MemberRole.values)
    with room_locked(room.pk):
        other_owners = Membership.objects.filter(room=room, role=MemberRole.OWNER).exclude(user=user)
        if role != MemberRole.OWNER and not other_owners.exists():
            raise NotAllowed(f"{user} is the only owner of {room}: make somebody else owner first")
        membership, _ = Membership.objects.update_or_create(room=room, user=user, defaults={"role": role})
        record_event(room, "add_member", actor=actor, room_id=room.pk, data={"username": user.get_username(), "role": role})
    return membership


def clean_name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > 120 or not name.isprintable():
        raise Invalid(f"room name {name[:40]!r}: expected 1 to 120 printable characters")
    return name


def read_team(team: str | list[str]) -> list[str]:
    """The roles of a team given by name (solo, pair, squad), as 'planner,builder', or as a list."""
    if isinstance(team, str):
        team = TEAMS.get(team) or [role.strip() for role in team.split(",") if role.strip()]
    for role in team:
        if not isinstance(role, str) or not ROLE_NAME.fullmatch(role) or role in RESERVED:
            raise Invalid(f"role {str(role)[:60]!r}: expected a lower-case word such as builder, not 'user' or 'chatroom'")
    if not team or len(team) > MAX_ROLES or len(set(team)) != len(team):
        raise Invalid(
            f"team {','.join(team)[:80]!r}: expected solo, pair, squad, or 1 to {MAX_ROLES} different roles such as planner,builder"
        )
    return list(team)


def free_slug(name: str) -> str:
    base = slugify(name)[:60].strip("-_")
    if not base or not base[0].isalpha():
        base = f"room-{base}".rstrip("-")
    taken = set(Room.objects.filter(slug__startswith=base).values_list("slug", flat=True))
    return next(slug for slug in (base, *(f"{base}-{number}" for number in range(2, len(taken) + 3))) if slug not in taken)


def require_role(room: Room, role: str) -> str:
    if role not in room.team:
        raise NotFound(
            f"there is no role {role[:60]!r} in {room}: its roles are {', '.join(room.team[:20])}", code="no_such_role", allowed=room.team
        )
    return role
