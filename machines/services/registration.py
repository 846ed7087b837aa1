"""How a machine becomes known."""

import re
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.utils.timezone import now

from chatroom.errors import ChatroomError, Invalid, NotFound
from chatroom.events import record_event
from chatroom.models import Token, TokenKind
from chatroom.models.token import hash_secret
from machines import hints
from machines.models import Machine

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
ENROLMENT_LIFETIME = timedelta(hours=1)


class NameTaken(ChatroomError):
    """Another machine has this name."""

    code, status = "name_taken", 409


def register_machine(name: str, *, platform: str, owner: User) -> tuple[Machine, str]:
    """A new machine and its token's secret."""
    if not NAME.fullmatch(name):
        raise Invalid(f"machine name {name[:60]!r}: expected up to 60 letters, digits, '.', '_' or '-'")
    try:
        with transaction.atomic():
            machine = Machine.objects.create(name=name, owner=owner, platform=platform[:120])
            record_event(machine, "register", actor=owner.get_username(), room_id=None, to_state=machine.status)
            _, secret = Token.objects.issue(kind=TokenKind.MACHINE, name=name, subject_id=machine.pk)
            hints.fleet_changed(owner.pk)
    except IntegrityError:
        raise NameTaken(f"there is a machine {name} already: choose another --name, or revoke the old one first") from None
    return machine, secret


def issue_enrolment(owner: User) -> str:
    """The secret of the one command to paste on a new machine: single use, within the hour."""
    return Token.objects.issue(kind=TokenKind.ENROLMENT, name="add a machine", user=owner, expires_at=now() + ENROLMENT_LIFETIME)[1]


def find_enrolment(secret: str) -> Token:
    return Token.objects.get(kind=TokenKind.ENROLMENT, hash=hash_secret(secret))


def redeem_enrolment(secret: str, *, name: str, platform: str) -> tuple[Machine, str]:
    """The machine and its token, for an enrolment secret that nobody used before."""
    with transaction.atomic():
        token = Token.objects.usable().filter(kind=TokenKind.ENROLMENT, hash=hash_secret(secret)).select_related("user").first()
        if token is None or token.user is None or not Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now()):
            raise NotFound("this enrolment was used or is too old: press Add a machine again")
        machine, issued = register_machine(name, platform=platform, owner=token.user)
        Token.objects.filter(pk=token.pk).update(subject_id=machine.pk)  # so that the page knows who came of it
        return machine, issued
