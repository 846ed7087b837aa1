"""How long an agent is believed, in each situation of the design's table."""

import pytest
from django.contrib.auth.models import User
from django.test import override_settings
from django.utils.timezone import now

from agents import leases
from agents.models import Agent, AgentKind
from agents.services import abandon_offer, complete_task, fail_task, report_progress, start_task
from chatroom.models import Pulse, Room
from chatroom.services.messages import send_message
from chatroom.services.tasks import reset
from tests.agents.playing import Program, task_of
from tests.factories import make_held_task, principal_of

pytestmark = pytest.mark.django_db


def left(room: Room, role: str = "builder") -> float:
    """Seconds until the lease is over."""
    lease = Agent.objects.get(room=room, role=role).lease_expires_at
    assert lease is not None
    return (lease - now()).total_seconds()


def about(seconds: float) -> object:
    return pytest.approx(seconds, abs=15)


def test_a_custom_agents_lease_follows_what_it_does(room: Room, alice: User) -> None:
    principal = principal_of(alice)
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    assert left(room) == about(90)  # waiting
    claim = program.take(start=False)
    assert left(room) == about(120)  # offered, not yet started
    start_task(room.pk, claim, principal=principal)
    assert left(room) == about(3600)  # working
    Agent.objects.update(lease_expires_at=leases.lease(60))
    report_progress(room.pk, claim, text="half", principal=principal)
    assert left(room) == about(3600)  # any call
    complete_task(room.pk, claim, text="done", principal=principal)
    assert left(room) == about(90)  # between tasks
    assert program.agent.waiting_since is None  # shown as "not waiting yet"
    program.connect()
    assert program.agent.waiting_since is not None


@pytest.mark.parametrize(("kind", "seconds"), [(AgentKind.CUSTOM, 90), (AgentKind.REMOTE, 300)])
def test_between_tasks_an_agent_has_time_to_wait_again(room: Room, kind: str, seconds: float) -> None:
    _, agent, _ = make_held_task(room)
    Agent.objects.filter(pk=agent.pk).update(kind=kind)
    assert (leases.between_tasks_lease(Agent.objects.get(pk=agent.pk)) - now()).total_seconds() == about(seconds)


def test_an_agent_whose_task_was_taken_back_or_failed_has_time_to_wait_again(room: Room, alice: User) -> None:
    task, _, _ = make_held_task(room)
    reset(room.pk, task_id=task.pk, actor="alice")
    assert left(room) == about(90)
    _, _, claim = make_held_task(room, "reviewer")
    fail_task(room.pk, claim.key, text="no", principal=principal_of(alice))
    assert left(room, "reviewer") == about(90)


def test_an_undelivered_offer_lengthens_no_lease(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    offer = program.look()
    assert offer is not None
    before = left(room)
    abandon_offer(offer.claim, room_id=room.pk, reason="its socket ended")
    assert left(room) <= before


def test_a_working_agents_renewal_leaves_its_long_lease_alone(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    claim = program.take()
    before = left(room)
    assert program.renew() == "ok"
    assert left(room) <= before
    assert task_of(claim).is_held


@override_settings(HEARTBEAT_TTL=5, OFFERED_TTL=7, WORKING_TTL_CUSTOM=11)
def test_the_numbers_are_settings(room: Room, alice: User, pulse: Pulse) -> None:
    send_message(room.pk, text="do it", author=alice)
    program = Program(room, alice).connect()
    assert left(room) <= 5
    claim = program.take(start=False)
    assert 5 < left(room) <= 7
    start_task(room.pk, claim, principal=principal_of(alice))
    assert 7 < left(room) <= 11
