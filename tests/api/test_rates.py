"""How often one token may call the API."""

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User

from chatroom import rates
from chatroom.errors import TooMany
from chatroom.models import Room
from chatroom.rates import Buckets
from tests.factories import token_of

from .conftest import Api


class Clock:
    time = 0.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, settings: LazySettings) -> Clock:
    settings.API_RATE, settings.API_BURST = 2, 3
    monkeypatch.setattr(rates, "monotonic", clock := Clock())
    monkeypatch.setattr(rates.buckets, "known", type(rates.buckets.known)())
    return clock


def served(buckets: Buckets, token: str, *, of: int) -> int:
    count = 0
    for _ in range(of):
        try:
            buckets.take(token)
            count += 1
        except TooMany:
            pass
    return count


def test_a_token_has_its_burst_and_then_its_rate(clock: Clock) -> None:
    buckets = Buckets()
    assert served(buckets, "one", of=10) == 3
    assert served(buckets, "other", of=10) == 3
    with pytest.raises(TooMany, match="expected at most 2 a second, after 3 at once") as refusal:
        buckets.take("one")
    assert refusal.value.after == 0.5
    clock.time += 1
    assert served(buckets, "one", of=10) == 2
    clock.time += 3600
    assert served(buckets, "one", of=10) == 3


def test_the_longest_idle_are_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_BUCKETS", 2)
    buckets = Buckets()
    for token in ("one", "two", "one", "three"):
        buckets.take(token)
    assert list(buckets.known) == [hash("one"), hash("three")]


async def test_one_call_too_many_is_told_when_to_come_again(clock: Clock, owner: Api, room: Room, bob: User) -> None:
    assert [(await owner.get("whoami")).status for _ in range(3)] == [200, 200, 200]
    answer = await owner.post("rooms/demo/messages", {"text": "x"})
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (429, "too_many", "1")
    assert (await Api(token_of(bob)).get("whoami")).status == 200
    clock.time += 0.5
    assert (await owner.post("rooms/demo/messages", {"text": "x"})).status == 201
