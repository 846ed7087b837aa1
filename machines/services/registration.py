"""How a machine becomes known."""

import re
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.timezone import now

from chatroom.errors import ChatroomError, Invalid, NotFound
from chatroom.events import record_event
from chatroom.models import Token, TokenKind
from chatroom.models.token import hash_secret
from chatroom.services.tokens import revoke_tokens
from machines import hints
from machines.models import Machine

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
LONGEST_REGISTRATION = 64
ENROLMENT_LIFETIME = timedelta(hours=1)


class NameTaken(ChatroomError):
    """Another machine has this name."""

    code, status = "name_taken", 409


def register_machine(name: str, *, platform: str, owner: User, registration: str = "") -> tuple[Machine, str]:
    """A new machine and its token's secret. A daemon that missed the answer comes again with its `registration`, and gets a new secret."""
    if not NAME.fullmatch(name):
        raise Invalid(f"machine name {name[:60]!r}: expected up to 60 letters, digits, '.', '_' or '-'")
    if len(registration) > LONGEST_REGISTRATION:
        raise Invalid(f"registration {registration[:60]!r}: expected at most {LONGEST_REGISTRATION} characters")
    with transaction.atomic():
        try:
            machine = create_machine(name, platform=platform, owner=owner, registration=registration)
        except IntegrityError:
            machine = take_back_answer(name, owner=owner, registration=registration)
        _, secret = Token.objects.issue(kind=TokenKind.MACHINE, name=name, subject_id=machine.pk)
    return machine, secret


def create_machine(name: str, *, platform: str, owner: User, registration: str) -> Machine:
    with transaction.atomic():
        machine = Machine.objects.create(name=name, owner=owner, platform=platform[:120], registration=registration)
        record_event(machine, "register", actor=owner.get_username(), room_id=None, to_state=machine.status)
        hints.fleet_changed(owner.pk)
    return machine


def take_back_answer(name: str, *, owner: User, registration: str) -> Machine:
    """The machine that this daemon registered before; the token of the answer that it missed is worth nothing from now on."""
    machine = Machine.objects.awaited(registration).select_for_update(of=("self",)).filter(name=name, owner=owner).first()
    if machine is None:
        raise NameTaken(f"there is a machine {name} already: choose another --name, or revoke the old one first")
    revoke_tokens(Q(kind=TokenKind.MACHINE, subject_id=machine.pk))
    return machine


def issue_enrolment(owner: User) -> str:
    """The secret of the one command to paste on a new machine: single use, within the hour."""
    return Token.objects.issue(kind=TokenKind.ENROLMENT, name="add a machine", user=owner, expires_at=now() + ENROLMENT_LIFETIME)[1]


def find_enrolment(secret: str) -> Token:
    return Token.objects.get(kind=TokenKind.ENROLMENT, hash=hash_secret(secret))


def redeem_enrolment(secret: str, *, name: str, platform: str, registration: str = "") -> tuple[Machine, str]:
    """The machine and its token, for an enrolment secret that nobody used before; or for the daemon that did, and missed the answer."""
    with transaction.atomic():
        token = Token.objects.filter(kind=TokenKind.ENROLMENT, hash=hash_secret(secret)).select_related("user").first()
        if token is None or token.user is None or not (is_retry(token, registration) or use_up(token)):
            raise NotFound("this enrolment was used or is too old: press Add a machine again")
        machine, issued = register_machine(name, platform=platform, owner=token.user, registration=registration)
        Token.objects.filter(pk=token.pk).update(subject_id=machine.pk)  # so that the page knows who came of it
        return machine, issued


def is_retry(token: Token, registration: str) -> bool:
    return Machine.objects.awaited(registration).select_for_update(of=("self",)).filter(pk=token.subject_id or 0).first() is not None


def use_up(token: Token) -> bool:
    """True for one of all that come with it."""
    return bool(Token.objects.usable().filter(pk=token.pk).update(revoked_at=now()))
