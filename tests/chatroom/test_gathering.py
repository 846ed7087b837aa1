"""What comes while others are being written travels together."""

import asyncio
import threading

import pytest
from django.db import OperationalError

from chatroom.gathering import Gathered, attempted

pytestmark = pytest.mark.django_db


class Slow:
    """An act that waits for leave, and remembers what it was given."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go, self.fails = threading.Event(), False

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        assert self.may_go.wait(10)
        if self.fails:
            raise OSError("away")
        return [10 * item for item in items]


@pytest.fixture
def slow() -> Slow:
    return Slow()


async def begin(gathered: Gathered[int, int], *items: int) -> list["asyncio.Task[int]"]:
    tasks = [asyncio.create_task(gathered(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def until_under_way(slow: Slow) -> None:
    async with asyncio.timeout(10):
        while not slow.batches:
            await asyncio.sleep(0.001)


async def test_what_comes_meanwhile_is_one_act_and_everyone_gets_its_own_answer(slow: Slow) -> None:
    gathered = Gathered(slow)
    first = await begin(gathered, 1)
    await until_under_way(slow)
    others = await begin(gathered, 2, 3, 4)
    slow.may_go.set()
    assert await asyncio.gather(*first, *others) == [10, 20, 30, 40]
    assert slow.batches == [[1], [2, 3, 4]]
    assert await gathered(5) == 50


async def test_a_failure_is_everyones_and_the_next_act_is_tried(slow: Slow) -> None:
    gathered, slow.fails = Gathered(slow), True
    slow.may_go.set()
    tasks = await begin(gathered, 1, 2)
    assert [str(error) for error in await asyncio.gather(*tasks, return_exceptions=True)] == ["away", "away"]
    slow.fails = False
    assert await gathered(3) == 30


async def test_who_has_gone_while_waiting_is_left_out(slow: Slow) -> None:
    gathered = Gathered(slow)
    first = await begin(gathered, 1)
    await until_under_way(slow)
    gone, stays = await begin(gathered, 2, 3)
    gone.cancel()
    await asyncio.sleep(0)
    slow.may_go.set()
    assert await asyncio.gather(*first, stays) == [10, 30]
    assert slow.batches == [[1], [3]]


async def test_what_the_database_says_of_one_befalls_no_other() -> None:
    def act(items: list[int]) -> list[int | Exception]:
        return [attempted(ten_times, item) for item in items]

    def ten_times(item: int) -> int:
        if item == 2:
            raise OperationalError("locked")
        return 10 * item

    gathered: Gathered[int, int] = Gathered(act)
    found = await asyncio.gather(*await begin(gathered, 1, 2, 3), return_exceptions=True)
    assert [str(answer) for answer in found] == ["10", "locked", "30"]
