"""After an outage of ours, or a jump of the clock, everybody first gets the chance to say that they live."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.db.models import F
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim
from chatroom import sweep as sweeping
from chatroom.models import Event, Pulse, Room, Task
from chatroom.sweep import beat_pulse, is_quiet, sweep
from tests.agents.playing import Program, everything
from tests.factories import make_agent, make_held_task, make_task

pytestmark = pytest.mark.django_db

HOUR = 3600


def shift_clock(seconds: float) -> None:
    """The clock is set forward: whatever is stored lies that much further back. (Negative: it is set back.)"""
    by = timedelta(seconds=seconds)
    fields = {
        Agent: ("lease_expires_at", "last_seen_at", "status_since", "waiting_since"),
        Task: ("status_since", "look_at"),
        Pulse: ("beat_at", "quiet_until", "swept_at"),
    }
    for model, names in fields.items():
        model.objects.update(**{name: F(name) - by for name in names})  # type: ignore[attr-defined]


def seconds_left(agent: Agent) -> float:
    lease = Agent.objects.get(pk=agent.pk).lease_expires_at
    assert lease is not None
    return (lease - now()).total_seconds()


def test_without_any_pulse_it_is_quiet(room: Room) -> None:
    make_agent(room, lease=-1)
    before = everything()
    sweep()
    assert everything() == before


@pytest.mark.scenario(86)
def test_while_no_web_process_lives_nobody_is_declared_dead_and_nobody_told(room: Room, pulse: Pulse) -> None:
    make_held_task(room, lease=-1)
    make_agent(room, "reviewer", lease=-1)
    make_task(room, "reviewer", status_since=now() - timedelta(seconds=400))
    Pulse.objects.update(beat_at=now() - timedelta(seconds=16))
    before = everything()
    sweep()
    assert everything() == before
    Pulse.objects.update(beat_at=now() - timedelta(seconds=14))
    sweep()
    assert set(Agent.objects.values_list("status", flat=True)) == {AgentStatus.DEAD}


@pytest.mark.scenario(86)
def test_after_an_outage_who_renews_lives_with_everything_as_it_was_and_who_does_not_is_dead(room: Room, pulse: Pulse, alice: User) -> None:
    waiting = Program(room, alice, "reviewer").connect()
    _, gone, claim = make_held_task(room, lease=5)
    shift_clock(600)
    sweep()
    beat_pulse()
    sweep()
    assert not Event.objects.filter(trigger="heartbeat_expired").exists()
    assert waiting.renew() == "ok"

    Pulse.objects.update(quiet_until=now() - timedelta(seconds=1))
    Agent.objects.filter(pk=gone.pk).update(lease_expires_at=now() - timedelta(seconds=1))
    sweep()
    assert waiting.agent.status == AgentStatus.READY
    assert (Agent.objects.get(pk=gone.pk).status, Claim.objects.get(pk=claim.pk).is_open) == (AgentStatus.DEAD, False)


def test_a_beat_in_time_changes_nothing_but_the_beat(pulse: Pulse) -> None:
    before = Pulse.objects.values().get()
    beat_pulse()
    after = Pulse.objects.values().get()
    assert {name for name, value in after.items() if before[name] != value} == {"beat_at"}  # type: ignore[literal-required]
    assert not is_quiet()


@pytest.mark.parametrize("seconds", [16, HOUR, -16, -HOUR])
def test_a_beat_that_finds_the_pulse_far_away_begins_the_quiet_time(pulse: Pulse, seconds: float) -> None:
    shift_clock(seconds)
    beat_pulse()
    left = (Pulse.objects.get().quiet_until - now()).total_seconds()
    assert 85 < left <= 90
    assert is_quiet()


def test_the_first_beat_ever_begins_no_quiet_time(db: None) -> None:
    beat_pulse()
    assert not is_quiet()


@pytest.mark.parametrize("seconds", [-1, 2], ids=["set back", "later"])
def test_the_last_look_for_the_quiet_time_is_not_good_for_long(pulse: Pulse, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    assert not is_quiet()
    Pulse.objects.update(quiet_until=now() + timedelta(seconds=60))
    looked_at = sweeping.LAST_LOOK.at
    monkeypatch.setattr(sweeping, "now", lambda: looked_at + timedelta(seconds=0.5))
    assert not is_quiet(look_again_after=1)
    monkeypatch.setattr(sweeping, "now", lambda: looked_at + timedelta(seconds=seconds))
    assert is_quiet(look_again_after=1)


@pytest.mark.scenario(90)
def test_with_a_clock_set_back_no_lease_is_longer_than_its_lifetime(room: Room, pulse: Pulse) -> None:
    ready, (_, working, _) = make_agent(room, "reviewer"), make_held_task(room)
    shift_clock(-HOUR)
    sweep()
    assert seconds_left(ready) <= 91
    assert seconds_left(working) <= HOUR + 1
    assert set(Agent.objects.values_list("status", flat=True)) == {AgentStatus.READY, AgentStatus.WORKING}


@pytest.mark.scenario(90)
@pytest.mark.parametrize("does_beat", [True, False])
def test_with_a_clock_set_back_and_forward_again_nobody_is_declared_dead(room: Room, pulse: Pulse, alice: User, does_beat: bool) -> None:
    waiting = Program(room, alice, "reviewer").connect()
    _, working, claim = make_held_task(room)
    for jump in (-HOUR, HOUR, HOUR, -HOUR):
        shift_clock(jump)
        sweep()
        if does_beat:
            beat_pulse()
        sweep()
        assert waiting.renew() == "ok"
        beat_pulse()
        sweep()
    # The quiet time is over, and the working agent, which calls seldom, has said nothing yet.
    Pulse.objects.update(quiet_until=now() - timedelta(seconds=1))
    sweep()
    assert not Event.objects.filter(trigger="heartbeat_expired").exists()
    assert Claim.objects.get(pk=claim.pk).is_open
    assert 0 < seconds_left(working) <= HOUR + 1


@pytest.mark.scenario(90)
def test_with_a_clock_set_back_no_task_waits_longer_to_be_looked_at(room: Room, pulse: Pulse) -> None:
    held, _, _ = make_held_task(room, started=False)
    waiting = make_task(room, "reviewer")
    shift_clock(-HOUR)
    sweep()
    left = {task.pk: (task.look_at - now()).total_seconds() for task in Task.objects.all() if task.look_at is not None}
    assert 110 < left[held.pk] <= 120
    assert 290 < left[waiting.pk] <= 300


def test_a_quiet_time_ahead_of_a_clock_set_back_is_cut(pulse: Pulse) -> None:
    Pulse.objects.update(quiet_until=now() + timedelta(hours=1))
    sweep()
    assert Pulse.objects.get().quiet_until <= now() + timedelta(seconds=90)


def test_the_time_of_an_outage_is_given_back_once(room: Room, pulse: Pulse) -> None:
    _, working, _ = make_held_task(room, lease=1000)
    shift_clock(600)
    beat_pulse()
    sweep()
    assert 950 < seconds_left(working) < 1001
    sweep()
    assert 950 < seconds_left(working) < 1001
