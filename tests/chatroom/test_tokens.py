"""Sign-in links, the sign-in of terminals, and who a token makes one."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db.models import Q
from django.utils.timezone import now

from chatroom.errors import ChatroomError, Invalid, NotAllowed, NotFound, NotSignedIn, RoleNotYours
from chatroom.models import DeviceGrant, GrantState, Room, Token, TokenKind
from chatroom.principals import bearer_of, resolve_token
from chatroom.services.tokens import (
    approve_device_grant,
    deny_device_grant,
    find_grant,
    issue_sign_in_link,
    redeem_device_code,
    redeem_sign_in_link,
    revoke_tokens,
    start_device_grant,
)
from tests.factories import agent_token, make_room, principal_of, token_of

pytestmark = pytest.mark.django_db


def secret_of(path: str) -> str:
    return path.removeprefix("/sign-in/").removesuffix("/")


def test_a_sign_in_link_works_once(alice: User) -> None:
    secret = secret_of(issue_sign_in_link(alice))
    assert redeem_sign_in_link(secret) == alice
    with pytest.raises(NotSignedIn, match="used or is too old"):
        redeem_sign_in_link(secret)


def test_a_sign_in_link_is_too_old_after_an_hour(alice: User) -> None:
    secret = secret_of(issue_sign_in_link(alice))
    Token.objects.update(expires_at=now() - timedelta(seconds=1))
    with pytest.raises(NotSignedIn):
        redeem_sign_in_link(secret)


def test_a_sign_in_link_of_somebody_who_was_locked_out_does_not_work(alice: User) -> None:
    secret = secret_of(issue_sign_in_link(alice))
    User.objects.update(is_active=False)
    with pytest.raises(NotSignedIn):
        redeem_sign_in_link(secret)


@pytest.mark.parametrize("secret", ["", "guess", "chatroom_sign_in_x"])
def test_a_guessed_sign_in_link_does_not_work(alice: User, secret: str) -> None:
    issue_sign_in_link(alice)
    with pytest.raises(NotSignedIn):
        redeem_sign_in_link(secret)


def test_a_link_is_no_token_and_a_token_no_link(alice: User) -> None:
    with pytest.raises(NotSignedIn):
        resolve_token(secret_of(issue_sign_in_link(alice)))
    with pytest.raises(NotSignedIn):
        redeem_sign_in_link(token_of(alice))


def test_no_secret_is_stored(alice: User) -> None:
    secret = token_of(alice)
    device_code, _ = start_device_grant("laptop")
    stored = [*Token.objects.values_list(), *DeviceGrant.objects.values_list()]
    assert not any(found in str(row) for row in stored for found in (secret, device_code))


def code_of(error: pytest.ExceptionInfo[ChatroomError]) -> tuple[int, str]:
    return error.value.status, error.value.code


def test_a_terminal_waits_is_approved_and_gets_its_token_once(alice: User) -> None:
    device_code, grant = start_device_grant("laptop")
    with pytest.raises(ChatroomError) as pending:
        redeem_device_code(device_code)
    assert code_of(pending) == (400, "authorization_pending")
    approve_device_grant(grant.user_code, user=alice)
    token, secret = redeem_device_code(device_code)
    assert (token.user, token.kind, token.name) == (alice, TokenKind.PERSON, "laptop")
    assert resolve_token(secret).user == alice
    with pytest.raises(ChatroomError) as used:
        redeem_device_code(device_code)
    assert code_of(used) == (400, "expired_token")
    assert Token.objects.count() == 1


def test_a_denied_terminal_gets_nothing(alice: User) -> None:
    device_code, grant = start_device_grant("laptop")
    deny_device_grant(grant.user_code, user=alice)
    with pytest.raises(ChatroomError) as denied:
        redeem_device_code(device_code)
    assert code_of(denied) == (400, "access_denied")


@pytest.mark.parametrize("approved", [True, False])
def test_a_sign_in_of_a_terminal_is_over_after_ten_minutes(alice: User, approved: bool) -> None:
    device_code, grant = start_device_grant("laptop")
    if approved:
        approve_device_grant(grant.user_code, user=alice)
    assert timedelta(minutes=9) < grant.expires_at - now() <= timedelta(minutes=10)
    DeviceGrant.objects.update(expires_at=now())
    with pytest.raises(ChatroomError) as over:
        redeem_device_code(device_code)
    assert code_of(over) == (400, "expired_token")
    with pytest.raises(NotFound):
        find_grant(grant.user_code)


def test_a_code_is_decided_once(alice: User, bob: User) -> None:
    _, grant = start_device_grant("laptop")
    approve_device_grant(grant.user_code, user=alice)
    for decide in (approve_device_grant, deny_device_grant):
        with pytest.raises((NotFound, Invalid)):
            decide(grant.user_code, user=bob)
    assert (DeviceGrant.objects.get().user, DeviceGrant.objects.get().state) == (alice, GrantState.APPROVED)


def test_a_code_may_be_typed_in_any_way(alice: User) -> None:
    _, grant = start_device_grant("laptop")
    assert find_grant(f"  {grant.user_code.lower().replace('-', ' ')} ") == grant
    for wrong in ("", "AAAA-AAAA", "ßßßß", "\0"):
        with pytest.raises(NotFound):
            find_grant(wrong)


def test_a_terminals_name_is_cleaned() -> None:
    assert start_device_grant("\x1b[31m" + "x" * 200)[1].client == ("[31m" + "x" * 200)[:120]
    assert start_device_grant("\x00")[1].client == "a terminal"


def test_old_sign_ins_are_forgotten() -> None:
    start_device_grant("laptop")
    DeviceGrant.objects.update(expires_at=now() - timedelta(minutes=11))
    start_device_grant("phone")
    assert DeviceGrant.objects.get().client == "phone"


def test_a_revoked_expired_or_unknown_token_is_nobodys(alice: User) -> None:
    revoked, expired = token_of(alice), token_of(alice)
    first, second = Token.objects.order_by("pk")
    revoke_tokens(Q(pk=first.pk))
    Token.objects.filter(pk=second.pk).update(expires_at=now())
    for secret in (revoked, expired, "", "guess"):
        with pytest.raises(NotSignedIn):
            resolve_token(secret)


def test_a_token_of_somebody_who_was_locked_out_is_nobodys(alice: User) -> None:
    secret = token_of(alice)
    User.objects.update(is_active=False)
    with pytest.raises(NotSignedIn):
        resolve_token(secret)


@pytest.mark.scenario(78)
def test_an_agents_token_reaches_its_own_room_and_role_only(room: Room, alice: User) -> None:
    other = make_room(alice, name="Other")
    principal = resolve_token(agent_token(room, "builder"))
    assert principal.find_room(room.slug) == principal.find_room(str(room.pk)) == room
    for reference in (other.slug, str(other.pk), "nowhere"):
        with pytest.raises(NotFound):
            principal.find_room(reference)
    principal.require_speaker(room, "builder")
    for where, role in ((room, "reviewer"), (other, "builder")):
        with pytest.raises(RoleNotYours):
            principal.require_speaker(where, role)
    with pytest.raises(NotAllowed):
        principal.require_member(room)


@pytest.mark.scenario(76)
def test_members_act_viewers_see_and_strangers_find_nothing(room: Room, alice: User, bob: User, vera: User, charlie: User) -> None:
    for user in (alice, bob, vera):
        assert principal_of(user).find_room("demo") == room
    with pytest.raises(NotFound):
        principal_of(charlie).find_room("demo")
    for user in (alice, bob):
        assert principal_of(user).require_member(room) == user
        principal_of(user).require_speaker(room, "builder")
    for act in (lambda who: who.require_member(room), lambda who: who.require_speaker(room, "builder")):
        with pytest.raises(NotAllowed):
            act(principal_of(vera))
        with pytest.raises(NotFound):
            act(principal_of(charlie))
    assert principal_of(alice).require_member(room, owner=True) == alice
    with pytest.raises(NotAllowed):
        principal_of(bob).require_member(room, owner=True)


@pytest.mark.parametrize("reference", ["", "0", "-1", "9" * 40, "٣", "a b", "A" * 300, "\0", "demo/"])
def test_a_reference_that_names_no_room_finds_none(room: Room, alice: User, reference: str) -> None:
    with pytest.raises(NotFound) as refusal:
        principal_of(alice).find_room(reference)
    assert refusal.value.code == "no_such_room"


@pytest.mark.parametrize(
    ("value", "secret"), [(b"Bearer abc", "abc"), (b"bearer  abc ", "abc"), (b"Basic abc", ""), (b"", ""), (b"\xff", "")]
)
def test_the_token_is_read_from_the_header(value: bytes, secret: str) -> None:
    assert bearer_of([(b"host", b"x"), (b"authorization", value)]) == secret
