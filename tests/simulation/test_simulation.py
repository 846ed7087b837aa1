"""The promise under every fault: docs/simulation.md. A failure prints its seed and the shortest trace that replays it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import LazySettings

from tests.simulation.mutants import MUTANTS, applied, find_function
from tests.simulation.running import Result, report, run_seed, shrink, wipe

SEEDS, STEPS, SHORT = 200, 300, 150
CHUNKS = 25
# On another stack the same seeds; CHATROOM_SIMULATION_SEEDS=25 makes a quick look of it.
COUNT = int(os.environ.get("CHATROOM_SIMULATION_SEEDS", str(SEEDS)))
LONG = 10_000 if COUNT >= SEEDS else 1_000

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(900), pytest.mark.scenario(85)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: LazySettings) -> Iterator[None]:
    settings.CHATROOM_HOME = tmp_path
    yield
    wipe()


def require_order(result: Result, *, tries: int = 20) -> None:
    if result.violation is not None:
        pytest.fail(report(shrink(result, tries=tries)), pytrace=False)


def test_no_invariant_breaks_in_a_long_run() -> None:
    """First, because it takes longest, and nothing can be taken off it."""
    result = run_seed(10_001, steps=LONG)
    require_order(result, tries=2)
    assert result.steps >= LONG


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_seed_breaks_an_invariant(chunk: int) -> None:
    for seed in range(1 + chunk, COUNT + 1, CHUNKS):
        require_order(run_seed(seed, steps=STEPS))


def test_the_same_seed_does_the_same_again() -> None:
    first, second = run_seed(7, steps=SHORT), run_seed(7, steps=SHORT)
    assert (first.steps, first.seconds, first.log) == (second.steps, second.seconds, second.log)


def test_a_broken_seed_is_shrunk_to_a_trace_that_replays_it() -> None:
    [mutant] = [mutant for mutant in MUTANTS if mutant.name == "a restart does not bump the generation"]
    with applied(mutant):
        result = next(result for seed in range(1, 20) if (result := run_seed(seed, steps=SHORT)).violation is not None)
        shortest = shrink(result, tries=8)
    assert shortest.violation is not None
    assert shortest.violation.invariant == "56: each start has its generation"
    assert len(shortest.items) < len(result.items)
    assert f"seed {result.seed}" in report(shortest)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_still_finds_its_place(mutant: object) -> None:
    """A program that has changed must not make a mutant harmless in silence. `make mutants` hunts them."""
    function = find_function(mutant.function)  # type: ignore[attr-defined]
    before = function.__code__
    with applied(mutant):  # type: ignore[arg-type]
        assert function.__code__ is not before
    assert function.__code__ is before
