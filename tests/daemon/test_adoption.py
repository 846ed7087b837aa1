import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from machines.daemon import process as processes
from machines.daemon.daemon import Daemon, Ending, Options
from machines.daemon.runs import unsettled
from machines.daemon.state import Credentials, Home
from machines.daemon.supervisor import Supervisor
from tests.daemon.fakes import SLEEPER, STUBBORN, Machine, entry, until
from tests.daemon.processes import is_running


@pytest.mark.scenario(37)
async def test_a_returning_daemon_adopts_the_same_process(machine: Machine) -> None:
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    await machine.lose_daemon()
    adopted = machine.adopt_all()[0]
    adopted.update(entry(run=41, joined=True))
    await asyncio.sleep(0.1)
    assert adopted.vouched() == 41
    assert machine.living() == [pid]
    assert machine.link.opened == [41]
    os.kill(pid, signal.SIGKILL)
    assert (await machine.report("run.exited"))["signal"] == 9
    assert (await machine.report("run.launched", number=2))["run"] == 42


@pytest.mark.scenario(91)
async def test_an_exit_nobody_saw_is_reported_with_its_code(machine: Machine) -> None:
    machine.program("import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('bye')\nraise SystemExit(3)")
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    await machine.lose_daemon()
    (machine.root / "work" / "go").touch()
    await until(lambda: not is_running(pid))
    machine.adopt_all()[0].update(entry(run=41, joined=True))
    exited = await machine.report("run.exited")
    assert (exited["run"], exited["code"], exited["lines"], exited["failure"]) == (41, 3, ["bye"], "crash")
    assert exited["decision"]["do"] == "restart"


async def test_before_the_server_has_spoken_an_adopted_process_lives_on(machine: Machine) -> None:
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    await machine.lose_daemon()
    machine.link.lose()
    machine.adopt_all()
    await asyncio.sleep(0.2)
    assert machine.living() == [pid]


@pytest.mark.scenario(55)
async def test_a_stop_given_while_the_daemon_was_away_happens_when_it_is_back(machine: Machine) -> None:
    machine.supervise(entry())
    await machine.report("run.launched")
    await machine.lose_daemon()
    machine.adopt_all()[0].update(entry(generation=2, desired="stopped", command=91, run=41))
    assert (await machine.report("agent.stopped"))["command"] == 91
    assert machine.living() == []


async def test_a_stop_in_the_middle_of_which_the_daemon_died_is_finished_by_the_next(machine: Machine) -> None:
    machine.program(STUBBORN)
    machine.around.settings = machine.around.settings.__class__(stop_grace=600, stop_hard=700)
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    await machine.printed()
    supervisor.update(entry(generation=2, desired="stopped"))
    await until(lambda: list(machine.runs.glob("*/stop.json")))
    await machine.lose_daemon()
    machine.adopt_all()[0].update(entry(generation=3))
    assert (await machine.report("run.exited"))["asked"] == "stop"
    assert (await machine.report("run.launched", number=2))["generation"] == 3


async def test_a_killed_shim_leaves_no_orphan_and_counts_as_a_crash(machine: Machine) -> None:
    machine.program(
        f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import os; os.setsid()\\n' + {STUBBORN!r}])\n" + SLEEPER
    )
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    await until(lambda: len(machine.living()) == 2)
    old = set(machine.living())
    assert supervisor.process is not None
    shim = supervisor.process.identity("shim")
    assert shim is not None
    shim.signal(signal.SIGKILL)
    exited = await machine.report("run.exited")
    assert exited["message"] == "ended together with its shim, which was killed"
    assert exited["failure"] == "crash"
    await machine.report("run.launched", number=2)
    assert old.isdisjoint(machine.living())


async def test_a_run_whose_directory_was_removed_is_ended_reported_once_and_started_anew(machine: Machine) -> None:
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    await machine.printed()
    shutil.rmtree(next(machine.runs.glob("41-*")))
    assert (await machine.report("run.exited"))["run"] == 41
    assert (await machine.report("run.launched", number=2))["run"] == 42
    assert not is_running(pid)
    assert len(machine.named("run.exited")) == 1
    assert not [line for line in machine.said if "unexpected error" in line]


@pytest.mark.scenario(92)
async def test_a_daemon_killed_right_after_the_fork_finds_its_process_again(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    await until(lambda: supervisor.process is not None)
    await machine.lose_daemon()
    adopted = machine.adopt_all()
    assert len(adopted) == 1
    adopted[0].update(entry(run=41))
    await until(lambda: adopted[0].vouched() == 41)
    assert machine.link.opened == [41]
    assert len(machine.living()) == 1


@pytest.mark.scenario(92)
async def test_the_process_of_a_daemon_that_died_before_there_was_one_is_told_by_the_next(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    await until(lambda: supervisor.process is not None)
    directory = supervisor.process.directory.path if supervisor.process else machine.runs
    await machine.lose_daemon()
    await until((directory / "pid.json").exists)
    (directory / "pid.json").rename(directory / "later")
    machine.adopt_all()[0].update(entry(run=41))
    (directory / "later").rename(directory / "pid.json")
    assert (await machine.report("run.launched"))["pid"] == machine.living()[0]


@pytest.mark.scenario(92)
async def test_a_run_that_never_got_as_far_as_a_process_is_no_crash(machine: Machine, tmp_path: Path) -> None:
    directory = machine.runs / "40-abc"
    directory.mkdir()
    (directory / "run.json").write_text('{"run": 40, "agent": 7, "generation": 1, "room": "demo", "role": "builder", "harness": "agent"}')
    machine.adopt_all()[0].update(entry(run=40))
    exited = await machine.report("run.exited")
    assert (exited["run"], exited["failure"], exited["decision"]["verdict"]) == (40, "lost", "lost")
    assert (await machine.report("run.launched"))["run"] == 41


async def test_of_two_that_live_for_one_agent_the_newer_one_stays(machine: Machine) -> None:
    machine.supervise(entry())
    older = (await machine.report("run.launched"))["pid"]
    await machine.lose_daemon()
    machine.supervise(entry(generation=2))
    newer = (await machine.report("run.launched", number=2))["pid"]
    await machine.lose_daemon()
    assert sorted(machine.living()) == sorted([older, newer])
    supervisor = Supervisor(7, machine.around)
    found = [(directory, directory.info(say=machine.said.append)) for directory in unsettled(machine.runs)]
    supervisor.adopt([processes.adopt(directory, info) for directory, info in found if info is not None])
    assert [run["run"] for run in supervisor.describe_runs()] == [41, 42]
    machine.supervisors.append((supervisor, asyncio.create_task(supervisor.run())))
    assert (await machine.report("run.exited"))["asked"] == "superseded"
    await until(lambda: machine.living() == [newer])
    supervisor.update(entry(generation=2, run=42, joined=True))
    await until(lambda: supervisor.vouched() == 42)


@pytest.mark.processes
async def test_on_server_loss_agents_are_ended_where_it_was_asked_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.supervise(entry())
    await machine.report("run.launched")
    await machine.lose_daemon()
    machine.around.reports.close()
    monkeypatch.setattr("machines.daemon.daemon.SERVER_LOSS", 0.2)
    nowhere = "http://127.0.0.1:9"
    options = Options(
        server=nowhere, name="laptop-7", version="1", allowed=[], harnesses=machine.root / "harnesses.toml", abort_on_server_loss=True
    )
    home = Home(machine.root / "home", say=machine.said.append)
    daemon = Daemon(options, home, Credentials(nowhere, 3, "laptop-7", "t"), say=machine.said.append)
    running = asyncio.create_task(daemon.run())
    await until(lambda: list(machine.runs.glob("41-*/settled")))
    assert machine.living() == []
    daemon.finish(Ending(0, keep_agents=True))
    await machine.over(running)
    machine.around = machine.make_around()
    assert (await machine.report("run.exited"))["asked"] == "server_loss"
