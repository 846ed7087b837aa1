"""Every claim, join and promotion, raced by 16 threads and by 16 processes: exactly one winner, whichever database decides."""

from collections.abc import Iterator

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import Agent, Claim, Incarnation
from chatroom.models import Event, Room, Task
from chatroom.services.tokens import approve_device_grant, issue_sign_in_link, start_device_grant
from tests.agents import racers
from tests.agents.racers import NUMBER, Racers, act
from tests.factories import make_agent, make_claim, make_room, make_task

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(600)]
ROUNDS = 100  # by threads, and as many by processes
FEWER = 5  # of what only varies the theme


@pytest.fixture(scope="module", params=["threads", "processes"])
def field(request: pytest.FixtureRequest, django_db_setup: None) -> Iterator[Racers]:
    with racers.racers(request.param) as started:
        yield started


def count(trigger: str, *, subject: str) -> int:
    return Event.objects.filter(trigger=trigger, subject=subject).count()


def forget_claim(task: Task, *, status: str) -> None:
    """The state before the race, put back directly."""
    Claim.objects.filter(task=task).delete()
    Task.objects.filter(pk=task.pk).update(status=status, attempt=0)


@pytest.mark.scenario(13)
@pytest.mark.scenario(19)
def test_of_many_claims_joins_and_promotions_at_the_same_instant_one_each_wins(field: Racers, alice: User) -> None:
    room = make_room(alice, name="Races", team="squad")
    builder, planner = make_agent(room, "builder", lease=3600), make_agent(room, "planner", status="offline")
    task, waiting = make_task(room), [make_task(room, "reviewer", status="queued") for _ in range(3)]
    for number in range(1, ROUNDS + 1):
        acts = {
            "claim": act(racers.claim, (room.pk, builder.pk, task.pk)),
            "promote": act(racers.promote, (room.pk, "reviewer")),
            "join": act(racers.join, *[(room.pk, alice.pk, "planner", f"{number}-{racer}", True) for racer in range(NUMBER)]),
        }
        # Each of the three is the one that all begin with, in its turn.
        order = sorted(acts, key=lambda name: (sorted(acts).index(name) + number) % 3)
        answers = dict(zip(order, field.race(*[acts[name] for name in order]), strict=True))

        assert sorted(answers["claim"]) == ["WrongState"] * (NUMBER - 1) + [Claim.objects.get(task=task).key]
        assert sorted(answers["promote"], key=str) == [waiting[0].pk] + [None] * (NUMBER - 1)
        assert sorted(answers["join"]) == ["Superseded"] * (NUMBER - 1) + ["joined"]
        for trigger, subject in (("claim_task", "task"), ("claim_task", "agent"), ("promote", "task"), ("join", "agent")):
            assert count(trigger, subject=subject) == number
        assert Task.objects.get(pk=task.pk).attempt == 1
        assert list(Task.objects.filter(assigned_role="reviewer").values_list("status", flat=True)) == ["pending", "queued", "queued"]

        forget_claim(task, status="pending")
        Task.objects.filter(pk=waiting[0].pk).update(status="queued")
        Agent.objects.filter(pk=builder.pk).update(status="ready")
        Agent.objects.filter(pk=planner.pk).update(status="offline", incarnation="")
        Incarnation.objects.filter(agent=planner, ended_at=None).update(ended_at=now())


@pytest.mark.scenario(13)
def test_of_many_starts_at_the_same_instant_the_newest_speaks_for_the_role(field: Racers, room: Room, alice: User) -> None:
    agent = Agent.objects.get(room=room, role="builder")
    for number in range(1, FEWER + 1):
        names = [f"{number}-{racer}" for racer in range(NUMBER)]
        [joined] = field.race(act(racers.join, *[(room.pk, alice.pk, "builder", name, False) for name in names]))
        assert list(joined) == ["joined"] * NUMBER
        current = Incarnation.objects.get(agent=agent, ended_at=None).key
        assert Agent.objects.get(pk=agent.pk).incarnation == current
        [renewed] = field.race(act(racers.renew, *[(agent.pk, name) for name in names]))
        assert [name for name, is_current in zip(names, renewed, strict=True) if is_current] == [current]
        assert count("join", subject="agent") == NUMBER * number


@pytest.mark.scenario(19)
def test_many_looks_of_one_waiting_agent_find_the_same_claim(field: Racers, room: Room) -> None:
    agent, task = make_agent(room, lease=3600, connection="me"), make_task(room)
    for number in range(1, FEWER + 1):
        [answers] = field.race(act(racers.look, (room.pk, agent.pk)))
        assert set(answers) == {Claim.objects.get().key}
        assert count("claim_task", subject="task") == number
        forget_claim(task, status="pending")
        Agent.objects.filter(pk=agent.pk).update(status="ready")


def test_the_database_alone_lets_one_claim_through(field: Racers, room: Room) -> None:
    agent, task = make_agent(room), make_task(room)
    for _ in range(FEWER):
        [answers] = field.race(act(racers.claim_without_any_lock, (room.pk, agent.pk, task.pk)))
        assert sorted(answers) == ["IntegrityError"] * (NUMBER - 1) + [Claim.objects.get().key]
        Claim.objects.all().delete()


def test_of_many_completions_one_is_accepted_and_one_task_is_promoted(field: Racers, room: Room, alice: User) -> None:
    agent, task = make_agent(room, status="working", lease=3600), make_task(room, status="in_progress", attempt=1)
    waiting = [make_task(room, status="queued") for _ in range(2)]
    for number in range(1, FEWER + 1):
        claim = make_claim(task, agent)
        [answers] = field.race(act(racers.complete, (room.pk, claim.key, alice.pk)))
        assert sorted(answers) == ["OutdatedClaim"] * (NUMBER - 1) + ["completed"]
        assert (count("complete_task", subject="task"), count("promote", subject="task")) == (number, number)
        assert list(Task.objects.order_by("pk").values_list("status", flat=True)) == ["completed", "pending", "queued"]
        Task.objects.filter(pk=waiting[0].pk).update(status="queued")
        forget_claim(task, status="in_progress")
        Agent.objects.filter(pk=agent.pk).update(status="working")


@pytest.mark.scenario(29)
def test_the_same_request_sent_many_times_at_once_has_one_effect_and_one_answer(field: Racers, room: Room, alice: User) -> None:
    for number in range(1, FEWER + 1):
        [answers] = field.race(act(racers.send_once, (room.pk, alice.pk, f"key-{number}")))
        assert set(answers) == {Task.objects.order_by("-pk").values_list("pk", flat=True)[0]}
        assert (Task.objects.count(), count("create", subject="task")) == (number, number)


def test_rooms_of_one_name_made_at_once_have_addresses_of_their_own(field: Racers, alice: User) -> None:
    [slugs] = field.race(act(racers.create_rooms, (alice.pk, "Demo")))
    assert sorted(slugs) == sorted(Room.objects.values_list("slug", flat=True))
    assert len(set(slugs)) == NUMBER


def test_a_link_and_a_terminals_code_are_redeemed_once(field: Racers, alice: User) -> None:
    for _ in range(FEWER):
        secret = issue_sign_in_link(alice).split("/")[2]
        device_code, grant = start_device_grant("laptop")
        approve_device_grant(grant.user_code, user=alice)
        links, codes = field.race(act(racers.redeem_link, (secret,)), act(racers.redeem_device, (device_code,)))
        assert sorted(links) == ["NotSignedIn"] * (NUMBER - 1) + ["alice"]
        assert sorted(codes) == ["ChatroomError"] * (NUMBER - 1) + ["laptop"]
