"""Two minutes of chaos; `make chaos` runs longer ones."""

import os

import pytest

from tests.processes.chaos import SETTINGS, TARGETS, Chaos
from tests.processes.conftest import MakeProgram

SEED, MINUTES, TASKS, LEAST = int(os.environ.get("CHAOS_SEED", "1")), 2.0, 120, 5


@pytest.mark.scenario(84)
@pytest.mark.timeout(600)
def test_every_task_ends_exactly_once_while_everything_is_killed_at_random(make_program: MakeProgram) -> None:
    program = make_program(**SETTINGS)
    program.start("--no-demo")
    report = Chaos(program, seed=SEED, minutes=MINUTES, tasks=TASKS, least=LEAST).run()
    print(*report.lines(), sep="\n")
    assert report.is_good, "\n".join(report.lines())
    assert min(report.hits[target] for target in TARGETS) >= LEAST, report.hits
