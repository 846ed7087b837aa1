"""How a machine becomes known."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from chatroom.errors import Invalid, NotFound, NotSignedIn
from chatroom.models import Event, Token
from chatroom.principals import resolve_token
from machines.consumers import resolve_machine
from machines.models import Machine, MachineStatus
from machines.services.registration import NameTaken, issue_enrolment, redeem_enrolment, register_machine

from .playing import Daemon

pytestmark = pytest.mark.django_db


def test_a_new_machine_gets_a_token_that_speaks_for_it_alone(alice: User) -> None:
    machine, secret = register_machine("laptop-9", platform="Linux x86_64", owner=alice)
    assert resolve_machine(secret) == machine
    assert (machine.status, machine.owner, machine.platform) == (MachineStatus.DISCONNECTED, alice, "Linux x86_64")
    principal = resolve_token(secret)
    assert (principal.kind, principal.user, principal.room_id) == ("machine", None, None)
    assert not Token.objects.filter(hash=secret).exists()
    assert Event.objects.get(subject="machine").trigger == "register"


def test_a_name_that_is_taken_is_refused_with_what_to_do(alice: User, bob: User, machine: Machine) -> None:
    with pytest.raises(NameTaken, match=r"there is a machine laptop-7 already: choose another --name") as refusal:
        register_machine("laptop-7", platform="", owner=bob)
    assert (refusal.value.status, refusal.value.code) == (409, "name_taken")
    assert Machine.objects.get().owner == alice


def test_a_daemon_that_missed_the_answer_gets_a_new_token_for_the_same_machine(alice: User) -> None:
    machine, lost = register_machine("laptop-9", platform="", owner=alice, registration="r1")
    again, secret = register_machine("laptop-9", platform="", owner=alice, registration="r1")
    assert (again.pk, resolve_machine(secret)) == (machine.pk, machine)
    with pytest.raises(NotSignedIn):
        resolve_token(lost)
    assert Event.objects.filter(trigger="register").count() == 1


def test_a_registration_is_worth_nothing_to_others_nor_once_the_machine_came(alice: User, bob: User) -> None:
    machine, _ = register_machine("laptop-9", platform="", owner=alice, registration="r1")
    for owner, registration in ((bob, "r1"), (alice, "r2"), (alice, "")):
        with pytest.raises(NameTaken):
            register_machine("laptop-9", platform="", owner=owner, registration=registration)
    Machine.objects.filter(pk=machine.pk).update(last_seen_at=now())
    with pytest.raises(NameTaken):
        register_machine("laptop-9", platform="", owner=alice, registration="r1")
    with pytest.raises(Invalid, match="at most 64"):
        register_machine("laptop-10", platform="", owner=alice, registration="r" * 65)


def test_a_used_enrolment_serves_the_daemon_that_missed_the_answer_and_nobody_else(alice: User) -> None:
    secret = issue_enrolment(alice)
    machine, lost = redeem_enrolment(secret, name="laptop-9", platform="", registration="r1")
    assert resolve_machine(redeem_enrolment(secret, name="laptop-9", platform="", registration="r1")[1]) == machine
    with pytest.raises(NotSignedIn):
        resolve_token(lost)
    for registration in ("", "r2"):
        with pytest.raises(NotFound, match="was used or is too old"):
            redeem_enrolment(secret, name="laptop-10", platform="", registration=registration)
    Machine.objects.update(revoked_at=now())
    with pytest.raises(NotFound):
        redeem_enrolment(secret, name="laptop-9", platform="", registration="r1")


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "../x", "x" * 61, "naïve", "a\n"])
def test_an_odd_name_is_refused(alice: User, name: str) -> None:
    with pytest.raises(Invalid, match="machine name"):
        register_machine(name, platform="", owner=alice)
    assert not Machine.objects.exists()


def test_an_enrolment_makes_one_machine_of_its_issuers_and_no_second(alice: User) -> None:
    secret = issue_enrolment(alice)
    machine, token = redeem_enrolment(secret, name="laptop-9", platform="")
    assert (machine.owner, resolve_machine(token)) == (alice, machine)
    with pytest.raises(NotFound, match="was used or is too old"):
        redeem_enrolment(secret, name="laptop-10", platform="")
    assert Machine.objects.count() == 1


def test_an_enrolment_is_not_used_up_by_a_name_that_is_taken(alice: User, machine: Machine) -> None:
    secret = issue_enrolment(alice)
    with pytest.raises(NameTaken):
        redeem_enrolment(secret, name=machine.name, platform="")
    assert redeem_enrolment(secret, name="laptop-9", platform="")[0].name == "laptop-9"


def test_an_enrolment_is_worth_nothing_after_an_hour_and_signs_nobody_in(alice: User) -> None:
    secret = issue_enrolment(alice)
    with pytest.raises(NotSignedIn):
        resolve_token(secret)
    Token.objects.filter(kind="enrolment").update(expires_at=now() - timedelta(seconds=1))
    with pytest.raises(NotFound):
        redeem_enrolment(secret, name="laptop-9", platform="")


def test_a_machine_is_seen_by_its_owner_and_by_the_members_of_the_rooms_it_serves(
    daemon: Daemon, alice: User, bob: User, charlie: User
) -> None:
    assert list(Machine.objects.visible_to(alice)) == list(Machine.objects.visible_to(bob)) == [daemon.machine]
    assert not Machine.objects.visible_to(charlie).exists()
    assert not Machine.objects.owned_by(bob).exists()
