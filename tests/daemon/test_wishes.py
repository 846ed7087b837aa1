"""What people want of an agent, and what its supervisor makes of it: the last word wins."""

import asyncio
import os
import signal
from typing import Literal

import pytest

from machines.daemon.policy import Limits
from tests.daemon.fakes import CRASHING, SLEEPER, STUBBORN, Machine, entry, until
from tests.daemon.processes import eventually, is_running


@pytest.mark.scenario(53)
async def test_stop_ends_the_whole_group_then_says_offline_and_nothing_restarts(machine: Machine) -> None:
    machine.program(f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {STUBBORN!r}])\n" + SLEEPER)
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    await until(lambda: len(machine.living()) == 2)
    supervisor.update(entry(generation=2, desired="stopped", command=91))
    stopped = await machine.report("agent.stopped")
    assert machine.living() == []
    assert (stopped["agent"], stopped["generation"], stopped["command"]) == (7, 2, 91)
    assert [report["report"] for report in machine.reports()][3:] == ["run.aborting", "run.exited", "agent.stopped"]
    exited = machine.named("run.exited")[0]
    assert (exited["asked"], exited["failure"], exited["decision"]) == ("stop", "asked", {"do": "none", "verdict": "asked"})
    assert len(machine.link.opened) == 1


@pytest.mark.scenario(54)
async def test_stop_during_the_restart_delay_wins(machine: Machine) -> None:
    machine.around.limits = Limits(delay=600)
    machine.program(CRASHING)
    supervisor = machine.supervise(entry())
    assert (await machine.report("run.exited"))["decision"]["do"] == "restart"
    supervisor.update(entry(generation=2, desired="stopped", command=91))
    assert (await machine.report("agent.stopped"))["command"] == 91
    assert len(machine.link.opened) == 1


async def test_a_person_does_not_wait_for_the_restart_delay(machine: Machine) -> None:
    machine.around.limits = Limits(delay=600)
    machine.program(CRASHING)
    supervisor = machine.supervise(entry())
    await machine.report("run.exited")
    supervisor.update(entry(generation=2))
    assert (await machine.report("run.validated", number=2))["generation"] == 2


async def test_a_stop_that_comes_while_the_run_is_prepared_starts_nothing(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    machine.link.before_answer = lambda: supervisor.update(entry(generation=2, desired="stopped", command=91))
    exited = await machine.report("run.exited")
    assert (exited["asked"], exited["code"]) == ("stop", None)
    assert (await machine.report("agent.stopped"))["generation"] == 2
    assert machine.named("run.launched") == []


async def test_restart_ends_the_old_run_first_then_starts_one_of_the_new_generation(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    first = (await machine.report("run.launched"))["pid"]
    machine.around.limits = Limits(delay=600)
    supervisor.update(entry(generation=2, command=92))
    second = await machine.report("run.launched", number=2)
    assert second["generation"] == 2
    assert machine.living() == [second["pid"]]
    assert not is_running(first)
    assert machine.named("run.exited")[0]["asked"] == "restart"
    assert machine.named("agent.stopped") == []


@pytest.mark.parametrize(("desired", "asked", "then"), [("running", "restart", "restart"), ("stopped", "stop", "none")])
async def test_a_program_that_ends_itself_before_its_daemon_asks_has_ended_as_a_person_asked(
    machine: Machine, desired: Literal["running", "stopped"], asked: str, then: str
) -> None:
    supervisor = machine.supervise(entry())
    os.kill((await machine.report("run.launched"))["pid"], signal.SIGKILL)
    eventually(supervisor.living().has_ended)  # the loop stands still meanwhile: the daemon hears of both at once
    supervisor.update(entry(generation=2, desired=desired, command=91))
    exited = await machine.report("run.exited")
    assert (exited["asked"], exited["failure"], exited["signal"]) == (asked, "asked", signal.SIGKILL)
    assert (exited["decision"]["do"], exited["decision"]["verdict"]) == (then, "asked")
    assert list(machine.around.brake.deaths) == []
    if desired == "running":
        assert (await machine.report("run.launched", number=2))["generation"] == 2
    assert [ask["attempt"] for ask in machine.link.asked] == ([1, 1] if desired == "running" else [1])


async def test_start_stop_start_in_a_row_ends_with_one_process_of_the_last_word(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    for generation, desired in ((2, "stopped"), (3, "running"), (4, "stopped"), (5, "running")):
        supervisor.update(entry(generation=generation, desired=desired))
        await asyncio.sleep(0.02)
    await until(lambda: any(report["generation"] == 5 for report in machine.named("run.launched")))
    assert machine.living() == [machine.named("run.launched")[-1]["pid"]]


async def test_a_late_message_of_an_older_generation_means_nothing(machine: Machine) -> None:
    supervisor = machine.supervise(entry(generation=5))
    await machine.report("run.launched")
    supervisor.update(entry(generation=4, desired="stopped"))
    await asyncio.sleep(0.05)
    assert supervisor.vouched() == 41
    assert len(machine.living()) == 1


@pytest.mark.scenario(50)
async def test_many_starts_make_one_process(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    for command in range(5):
        supervisor.update(entry(command=command))
        await asyncio.sleep(0)
    await machine.report("run.launched")
    supervisor.update(entry(command=6))
    await asyncio.sleep(0.05)
    assert len(machine.living()) == len(machine.link.opened) == 1
