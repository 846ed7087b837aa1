"""The daemon's smaller parts: freezing, the brake, messages, the cache, the harness book."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from machines.daemon.brake import Brake
from machines.daemon.cache import remember, remembered
from machines.daemon.daemon import Beat, Daemon
from machines.daemon.errors import StartRefused
from machines.daemon.freezing import FreezeWatch
from machines.daemon.messages import AgentEntry, BadMessage, Grant, PastExit, Settings
from machines.daemon.past import Past
from machines.daemon.policy import Exit, Limits
from machines.daemon.process import end_marked, first_of
from machines.daemon.runs import RunDirectory
from machines.daemon.surroundings import HarnessBook
from tests.daemon.fakes import entry
from tests.daemon.server import agent_entry


@pytest.mark.scenario(93)
def test_a_stopped_process_is_said_at_five_and_at_ten_seconds_once_each() -> None:
    watch = FreezeWatch()
    said = [(second, change) for second in range(30) if (change := watch.look(is_stopped=3 <= second < 20, now=100.0 + second))]
    assert said == [(8, "stopped"), (13, "frozen"), (20, "continued")]


def test_of_a_frozen_process_it_is_said_again_when_it_may_be_news() -> None:
    watch, said = FreezeWatch(), []
    for second in range(30):
        if second in (2, 6, 20):
            watch.say_again()
        said.append(watch.look(is_stopped=second < 25, now=100.0 + second))
    assert [(second, change) for second, change in enumerate(said) if change] == [
        (5, "stopped"),
        (10, "frozen"),
        (20, "frozen"),
        (25, "continued"),
    ]


def test_a_short_stop_is_not_worth_a_word() -> None:
    watch = FreezeWatch()
    assert [watch.look(is_stopped=second % 5 != 0, now=float(second)) for second in range(50)] == [None] * 50


def test_time_in_which_nobody_looked_does_not_count() -> None:
    """The daemon, or the whole machine, was stopped itself."""
    watch = FreezeWatch()
    watch.look(is_stopped=True, now=100.0)
    assert watch.look(is_stopped=True, now=3700.0) is None
    assert watch.look(is_stopped=True, now=3701.0) is None


async def test_what_is_done_every_so_often_goes_on_whatever_happens_once() -> None:
    said: list[str] = []
    daemon, calls = Daemon.__new__(Daemon), iter([OSError("no room"), ZeroDivisionError("odd")])
    daemon.say = said.append
    enough = asyncio.Event()

    async def act() -> None:
        if (error := next(calls, None)) is not None:
            raise error
        enough.set()

    keeping = asyncio.create_task(daemon.keep(Beat(lambda: 0.001, act, "heartbeat")))
    await first_of(enough.wait(), asyncio.shield(keeping))
    keeping.cancel()
    assert enough.is_set()
    assert said[0] == "heartbeat: no room"
    assert said[1].startswith("heartbeat: unexpected error, going on\nTraceback")
    assert "ZeroDivisionError: odd" in said[1]


async def test_a_process_that_does_not_go_is_looked_for_less_and_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    found: Iterator[list[Any]] = iter([[SimpleNamespace(kill=lambda: None)]] * 12 + [[]])
    monkeypatch.setattr("machines.daemon.process.asyncio.sleep", sleep)
    await end_marked(RunDirectory(tmp_path), look=lambda directory: next(found))
    assert pauses[:4] == [0.02, 0.04, 0.08, 0.16]
    assert pauses[-1] == max(pauses) == 2.0


def test_while_the_brake_is_on_one_at_a_time_has_the_turn() -> None:
    brake, limits = Brake(), Limits()
    for agent in (1, 2, 3):
        brake.died(agent, now=10.0)
    turns = [brake.take_turn(agent, agents=4, limits=limits, now=11.0) for agent in (1, 2, 1)]
    assert turns == [True, False, True]
    brake.give_up_turn(2)
    assert brake.take_turn(2, agents=4, limits=limits, now=11.0) is False
    brake.give_up_turn(1)
    assert brake.take_turn(2, agents=4, limits=limits, now=11.0) is True
    assert brake.take_turn(3, agents=4, limits=limits, now=100.0) is True


def test_a_turn_ends_with_the_braking_it_was_for() -> None:
    brake, limits = Brake(), Limits()
    for agent in (1, 2, 3):
        brake.died(agent, now=10.0)
    assert brake.take_turn(1, agents=4, limits=limits, now=11.0) is True
    assert brake.take_turn(2, agents=4, limits=limits, now=100.0) is True, "it is off by now"
    for agent in (2, 3, 4):
        brake.died(agent, now=200.0)
    assert brake.take_turn(2, agents=4, limits=limits, now=201.0) is True, "whoever had the turn then has no claim to this one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"desired": "perhaps"}, "desired = 'perhaps': expected on_demand, running, stopped"),
        ({"generation": "3"}, "generation = '3': expected int"),
        ({"generation": True}, "generation = True: expected int"),
        ({"room": None}, "room = None: expected str"),
        ({"history": [{"run": 1, "generation": 1, "verdict": "odd"}]}, "verdict = 'odd': expected faulty"),
    ],
)
def test_an_entry_that_does_not_say_what_it_must_is_refused_in_words(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadMessage, match=message):
        AgentEntry.parse({**agent_entry(), **change})


def test_an_entry_with_news_this_daemon_does_not_know_is_understood() -> None:
    assert AgentEntry.parse({**agent_entry(), "colour": "blue"}) == entry()


def test_a_grant_without_a_token_is_refused() -> None:
    with pytest.raises(BadMessage, match="token = None: expected str"):
        Grant.parse({"run": 1})


def test_settings_that_are_not_told_keep_their_defaults() -> None:
    assert Settings.parse({"stop_grace": 1, "restart_delay": 3}) == replace(Settings(), stop_grace=1.0)


def test_what_the_server_wanted_is_remembered_with_the_ages_of_now(tmp_path: Path) -> None:
    past = PastExit(run=40, generation=1, age=10.0, joined=True, verdict="faulty")
    remember(tmp_path, [entry(history=(past,))], say=print)
    found = remembered(tmp_path, say=print)[7]
    assert found.history[0].age >= 10.0
    assert asdict(replace(found, history=())) == asdict(entry())
    stored = json.loads((tmp_path / "agents.json").read_text())
    (tmp_path / "agents.json").write_text(json.dumps({**stored, "at": stored["at"] - 3600}))
    assert remembered(tmp_path, say=print)[7].history[0].age == pytest.approx(3610, abs=60)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"at": 1, "agents": [{}]}', '{"at": "x", "agents": []}', '{"at": 1, "agents": 3}'])
def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    said: list[str] = []
    (tmp_path / "agents.json").write_text(content)
    assert remembered(tmp_path, say=said.append) == {}
    assert len(said) == 1


def test_an_exit_the_server_cannot_know_yet_is_added_to_its_record() -> None:
    past, now = Past(), 1000.0
    past.add(Exit(run=41, at=990.0, joined=False, verdict="faulty", generation=1))
    told = PastExit(run=40, generation=1, age=100.0, joined=False, verdict="faulty")
    past.take(entry(history=(told,)), now=now)
    assert [one.run for one in past.exits] == [40, 41]
    past.take(entry(generation=2), now=now)
    assert past.exits == []  # a person started it anew
    past.take(entry(history=(told,)), now=now)
    past.acknowledge(41)
    past.take(entry(history=(told, replace(told, run=41, age=10.0))), now=now)
    assert [one.run for one in past.exits] == [40, 41]


def test_the_book_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "harnesses.toml"
    book = HarnessBook(path)
    with pytest.raises(StartRefused, match=r"no harness codex in .*; there are: none"):
        book.find("codex")
    path.write_text("[harnesses.codex]\ncommand = ['sh']\n")
    assert book.find("codex").command == ("sh",)
    path.write_text("[harnesses.codex\n")
    with pytest.raises(StartRefused, match="not valid TOML"):
        book.find("codex")
    path.write_text("[harnesses.codex]\ncommand = ['sh', '-c']\n")
    assert book.find("codex").command == ("sh", "-c")
