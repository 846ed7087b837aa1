import secrets
from datetime import timedelta

from django.contrib.auth.models import User
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils.timezone import now

from chatroom.errors import ChatroomError, Invalid, NotFound, NotSignedIn
from chatroom.models import DeviceGrant, GrantState, Token, TokenKind
from chatroom.models.token import hash_secret

SIGN_IN_LINK_LIFETIME = timedelta(hours=1)
DEVICE_GRANT_LIFETIME = timedelta(minutes=10)
# No vowels, so that no code is a word, and nothing that looks like something else.
CODE_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"


def issue_sign_in_link(user: User) -> str:
    """The path of a link that signs this person in, once, within the hour."""
    _, secret = Token.objects.issue(kind=TokenKind.SIGN_IN, name="sign-in link", user=user, expires_at=now() + SIGN_IN_LINK_LIFETIME)
    return f"/sign-in/{secret}/"


def redeem_sign_in_link(secret: str) -> User:
    token = Token.objects.usable().filter(kind=TokenKind.SIGN_IN, hash=hash_secret(secret)).select_related("user").first()
    # One guarded update decides between two browsers that open the link at the same instant.
    if (
        token is None
        or token.user is None
        or not Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now())
        or not token.user.is_active
    ):
        raise NotSignedIn("this sign-in link was used or is too old: ask for a new one")
    return token.user


def start_device_grant(client: str) -> tuple[str, DeviceGrant]:
    """A sign-in begun by a terminal: the secret it polls with, and the grant whose code a person compares."""
    DeviceGrant.objects.filter(expires_at__lt=now() - DEVICE_GRANT_LIFETIME).delete()
    device_code = secrets.token_urlsafe(32)
    code = "".join(secrets.choice(CODE_LETTERS) for _ in range(8))
    name = "".join(letter for letter in client if letter.isprintable())[:120] or "a terminal"
    grant = DeviceGrant.objects.create(
        device_hash=hash_secret(device_code), user_code=f"{code[:4]}-{code[4:]}", client=name, expires_at=now() + DEVICE_GRANT_LIFETIME
    )
    return device_code, grant


def waiting_grants() -> QuerySet[DeviceGrant]:
    """Nobody has decided yet, and somebody still can."""
    return DeviceGrant.objects.filter(state=GrantState.PENDING, expires_at__gt=now())


def find_grant(user_code: str) -> DeviceGrant:
    letters = "".join(letter for letter in user_code.upper() if letter.isalpha())
    grant = waiting_grants().filter(user_code=f"{letters[:4]}-{letters[4:]}").first()
    if grant is None:
        raise NotFound("no terminal is waiting with this code: it was mistyped, used, or is older than 10 minutes")
    return grant


def approve_device_grant(user_code: str, *, user: User) -> DeviceGrant:
    return decide_device_grant(user_code, user=user, state=GrantState.APPROVED)


def deny_device_grant(user_code: str, *, user: User) -> DeviceGrant:
    return decide_device_grant(user_code, user=user, state=GrantState.DENIED)


def decide_device_grant(user_code: str, *, user: User, state: GrantState) -> DeviceGrant:
    with transaction.atomic():
        grant = DeviceGrant.objects.select_for_update().get(pk=find_grant(user_code).pk)
        if grant.state != GrantState.PENDING:
            raise Invalid(f"this sign-in was {grant.state} already")
        grant.state, grant.user = state, user
        grant.save()
    return grant


def redeem_device_code(device_code: str) -> tuple[Token, str]:
    """The person's token for the terminal, once. Raises what RFC 8628 calls authorization_pending, access_denied or expired_token."""
    with transaction.atomic():
        grant = DeviceGrant.objects.select_for_update().filter(device_hash=hash_secret(device_code)).first()
        if grant is None or grant.expires_at <= now() or grant.state == GrantState.USED:
            raise ChatroomError("this sign-in is over: start login again", code="expired_token")
        if grant.state == GrantState.DENIED:
            raise ChatroomError("the sign-in was denied in the browser", code="access_denied")
        if grant.state == GrantState.PENDING:
            raise ChatroomError("nobody approved the code yet", code="authorization_pending")
        grant.state = GrantState.USED
        grant.save()
        return Token.objects.issue(kind=TokenKind.PERSON, name=grant.client, user=grant.user)


def revoke_tokens(scope: Q) -> int:
    return Token.objects.filter(scope, revoked_at=None).update(revoked_at=now())
