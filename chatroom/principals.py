"""Who is asking: a person, an agent's run or a machine, known by a bearer token."""

from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth.models import User
from django.db.models import F
from django.utils.timezone import now

from .errors import NotAllowed, NotFound, NotSignedIn, RoleNotYours
from .models import MemberRole, Membership, Room, Token, TokenKind
from .models.room import SLUG, RoomQuerySet
from .models.token import ONE_TIME, hash_secret
from .prepared import Prepared
from .unit import one_unit


@dataclass(frozen=True)
class Principal:
    token_id: int
    kind: str
    user: User | None
    room_id: int | None
    role: str
    subject_id: int | None
    is_over: bool = False
    # What this person is in the rooms that the act under way has locked.
    member_roles: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The actor of its events."""
        return self.user.get_username() if self.user else self.role or f"machine {self.subject_id}"

    @property
    def key(self) -> str:
        """The scope of its idempotency keys."""
        if self.user:
            return f"user:{self.user.pk}"
        return f"agent:{self.room_id}:{self.role}" if self.kind == TokenKind.AGENT else f"machine:{self.subject_id}"

    def find_room(self, reference: str) -> Room:
        """A room this principal may read. Raises NotFound for every other, whether it exists or not."""
        if self.is_over:
            raise RoleNotYours(f"this run of {self.role} has ended: its token may only deliver late results")
        if self.user is not None and SLUG.fullmatch(reference):
            if room := ROOM.first(user=self.user.pk, slug=reference):
                return room
            raise no_such_room(reference)
        return find_among(self.rooms(), reference)

    def lock_room(self, reference: str) -> Room:
        """As `find_room`, for an act on the room: the services that it calls find the row locked, and what this person may do is known."""
        with one_unit() as unit:
            room = self.find_locked(reference)
            unit.rooms[room.pk] = room
            if self.user is not None:
                self.member_roles[room.pk] = room.member_role  # type: ignore[attr-defined]  # annotated
        return room

    def find_locked(self, reference: str) -> Room:
        if self.user is not None and SLUG.fullmatch(reference):
            if room := LOCKED_ROOM.first(user=self.user.pk, slug=reference):
                return room
            raise no_such_room(reference)
        return find_among(self.rooms().select_for_update(of=("self",)), reference)

    def rooms(self) -> RoomQuerySet:
        if self.user is None:
            return Room.objects.filter(pk=self.room_id or 0)
        return rooms_of(self.user.pk)

    def require_person(self) -> User:
        if self.user is None:
            raise NotAllowed(f"this is for people: the token is {self.kind} {self.role or self.subject_id}'s")
        return self.user

    def require_member(self, room: Room, *, owner: bool = False) -> User:
        """A person who may act in the room; a viewer only sees."""
        user = self.require_person()
        role = self.member_roles.get(room.pk) or next((role for (role,) in MEMBER_ROLE.plain_rows(room=room.pk, user=user.pk)), None)
        if role is None:
            raise NotFound(f"there is no room {room}", code="no_such_room")
        if role == MemberRole.VIEWER or (owner and role != MemberRole.OWNER):
            raise NotAllowed(f"{user} is {role} of {room}: expected {'owner' if owner else 'member or owner'}")
        return user

    def require_speaker(self, room: Room, role: str) -> None:
        """May act as this role: its agent's token, or a person who may act in the room."""
        if self.kind == TokenKind.AGENT:
            if (self.room_id, self.role) != (room.pk, role):
                raise RoleNotYours(f"this token speaks for {self.role}, not for {role}")
        else:
            self.require_member(room)


def rooms_of(user_id: Any) -> RoomQuerySet:
    return Room.objects.filter(membership__user_id=user_id).annotate(member_role=F("membership__role"))


ROOM = Prepared[Room](lambda user, slug: rooms_of(user).filter(slug=slug).order_by())
MEMBER_ROLE = Prepared[Membership](lambda room, user: Membership.objects.filter(room=room, user=user).values_list("role"))
LOCKED_ROOM = Prepared[Room](lambda user, slug: rooms_of(user).filter(slug=slug).select_for_update(of=("self",)).order_by())
TOKEN = Prepared[Token](lambda digest: Token.objects.filter(hash=digest, revoked_at=None).exclude(kind__in=ONE_TIME).select_related("user"))


def no_such_room(reference: str) -> NotFound:
    return NotFound(f"there is no room {reference[:80]}", code="no_such_room")


def find_among(rooms: RoomQuerySet, reference: str) -> Room:
    try:
        return rooms.find(reference)
    except Room.DoesNotExist:
        raise no_such_room(reference) from None


def resolve_token(secret: str) -> Principal:
    token = TOKEN.first(digest=hash_secret(secret))
    is_usable = token is not None and (token.expires_at is None or token.expires_at > now())
    if token is None or not is_usable or (token.user is not None and not token.user.is_active):
        raise NotSignedIn("the token is unknown, revoked or expired: sign in with the login command")
    is_over = token.kind == TokenKind.AGENT and token.expires_at is not None
    return Principal(token.pk, token.kind, token.user, token.room_id, token.role, token.subject_id, is_over)


def bearer_of(headers: list[tuple[bytes, bytes]] | Any) -> str:
    """The bearer token of an ASGI handshake's headers, or nothing."""
    value = next((value for name, value in headers if name == b"authorization"), b"").decode("latin-1")
    scheme, _, secret = value.partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""
