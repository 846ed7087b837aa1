"""The daemon as a program, against a server played by the test."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.fakes import STUBBORN, until
from tests.daemon.hosts import ROOT, Host
from tests.daemon.processes import is_running
from tests.daemon.server import FakeServer, agent_entry, serving

pytestmark = pytest.mark.processes


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async for found in serving():
        yield found


@pytest.fixture
async def host(server: FakeServer, tmp_path: Path) -> AsyncIterator[Host]:
    found = Host(tmp_path, server)
    yield found
    await asyncio.to_thread(found.end)


async def kill(daemon: subprocess.Popen[str]) -> None:
    daemon.kill()
    await asyncio.to_thread(daemon.communicate)


@pytest.mark.scenario(36)
async def test_the_daemon_says_what_it_offers_then_does_what_is_wanted(host: Host, server: FakeServer) -> None:
    host.start()
    hello = await server.hears("hello")
    assert hello["protocol"] == 1
    assert hello["machine"] == "laptop-7"
    assert hello["harnesses"] == [{"name": "agent", "version": "", "models": [], "ok": True, "error": ""}]
    assert hello["allow_dirs"] == [str(host.work)]
    assert hello["runs"] == []
    launched = await server.report("run.launched")
    assert host.living() == [launched["pid"]]


@pytest.mark.scenario(37)
async def test_a_killed_daemons_agents_live_on_and_are_adopted(host: Host, server: FakeServer) -> None:
    first = host.start()
    pid = (await server.report("run.launched"))["pid"]
    await kill(first)
    assert host.living() == [pid]
    server.agents = [agent_entry(run=41, joined=True)]
    host.start()
    hello = await server.hears("hello", number=2)
    assert [(run["run"], run["agent"], run["generation"], run["state"], run["pid"]) for run in hello["runs"]] == [
        (41, 7, 1, "running", pid)
    ]
    assert hello["instance"] != server.heard("hello")[0]["instance"]
    await until(lambda: server.heard("heartbeat") and server.heard("heartbeat")[-1]["runs"] == [41])
    assert host.living() == [pid]
    assert {report["key"] for report in server.named("run.launched")} == {"run:41:launched"}  # perhaps sent twice, as one report


@pytest.mark.scenario(91)
async def test_what_ended_meanwhile_is_reported_before_the_snapshot(host: Host, server: FakeServer) -> None:
    first = host.start()
    pid = (await server.report("run.launched"))["pid"]
    await host.printed()
    await kill(first)
    os.kill(pid, signal.SIGUSR1)
    await until(lambda: not is_running(pid))
    host.start()
    exited = await server.report("run.exited")
    assert (exited["run"], exited["signal"], exited["lines"]) == (41, signal.SIGUSR1, ["up"])
    assert exited["decision"]["do"] == "restart"
    await until(lambda: {"type": "replayed"} in server.said)
    told = server.said[server.said.index(server.heard("hello")[1]) :]
    is_named = [run["run"] for run in told[0]["runs"]] == [41]
    assert is_named or told.index(exited) < told.index({"type": "replayed"})  # else the server would take it for lost
    assert (await server.report("run.launched", number=2))["run"] == 42


@pytest.mark.scenario(92)
async def test_a_daemon_killed_at_any_moment_of_a_start_makes_no_second_process(host: Host, server: FakeServer) -> None:
    for _ in range(5):
        daemon = host.start()
        seen = len(list(host.home.glob("runs/*")))
        await until(lambda: len(list(host.home.glob("runs/*"))) > seen or host.living())  # noqa: B023
        await kill(daemon)
    server.agents = [agent_entry(run=server.next_run - 1)]
    host.start()
    await server.hears("replayed", number=server.connections)
    await until(lambda: len(host.living()) == 1)
    await asyncio.sleep(0.3)
    assert len(host.living()) == 1


@pytest.mark.scenario(45)
async def test_sigterm_stops_a_stubborn_agent_with_all_it_started_then_ends(host: Host, server: FakeServer) -> None:
    host.program(f"import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n{STUBBORN}")
    daemon = host.start()
    await server.report("run.launched")
    await until(lambda: len(host.living()) == 3)
    daemon.terminate()
    code, said = await host.ended(daemon)
    assert code == 143, said
    assert host.living() == []
    assert [report["report"] for report in server.reports][-3:] == ["run.aborting", "run.exited", "agent.stopped"]
    assert server.heard("goodbye")[0]["keep_agents"] is False


async def test_sigterm_without_a_server_ends_in_time_and_tells_later(host: Host, server: FakeServer) -> None:
    daemon = host.start()
    await server.report("run.launched")
    await server.stop()
    daemon.terminate()
    assert (await host.ended(daemon))[0] == 143
    assert host.living() == []
    server.agents = []
    await server.start()
    host.start()
    assert (await server.report("run.exited"))["asked"] == "daemon_stop"


async def test_an_ending_daemon_starts_nothing_whatever_the_server_wants(host: Host, server: FakeServer) -> None:
    async def insist(report: dict[str, Any]) -> None:
        if report["report"] == "agent.stopped":
            await server.tell(type="agent", agent=agent_entry(generation=2))
            await server.tell(type="command", command=91, act="start_agent", agent=agent_entry(generation=3, command=91))

    server.on_report = insist
    daemon = host.start()
    await server.report("run.launched")
    daemon.terminate()
    await host.ended(daemon)
    assert host.living() == []
    assert len(server.heard("ask")) == 1


async def test_sigusr1_ends_the_daemon_alone(host: Host, server: FakeServer) -> None:
    daemon = host.start()
    pid = (await server.report("run.launched"))["pid"]
    daemon.send_signal(signal.SIGUSR1)
    assert (await host.ended(daemon))[0] == 0
    assert host.living() == [pid]
    assert server.heard("goodbye")[0]["keep_agents"] is True


async def test_a_second_sigint_ends_at_once_and_leaves_nobody(host: Host, server: FakeServer) -> None:
    server.settings |= {"stop_grace": 600, "stop_hard": 600}
    host.program(STUBBORN)
    daemon = host.start()
    await server.report("run.launched")
    await host.printed()
    daemon.send_signal(signal.SIGINT)
    await server.report("run.aborting")
    daemon.send_signal(signal.SIGINT)
    assert (await host.ended(daemon))[0] == 130
    await until(lambda: not host.living())


@pytest.mark.scenario(44)
async def test_sighup_aborts_every_run_and_the_same_daemon_starts_anew_with_the_new_configuration(host: Host, server: FakeServer) -> None:
    daemon = host.start()
    await server.report("run.launched")
    host.program("import time\nprint('mended', flush=True)\ntime.sleep(600)")
    daemon.send_signal(signal.SIGHUP)
    second = await server.report("run.launched", number=2)
    assert server.named("run.exited")[0]["asked"] == "abort"
    assert host.living() == [second["pid"]]
    assert daemon.poll() is None
    await until(lambda: any("mended" in chunk["text"] for message in server.heard("log") for chunk in message["chunks"]))


@pytest.mark.scenario(41)
async def test_a_second_daemon_of_the_same_home_says_which_process_holds_it(host: Host, server: FakeServer) -> None:
    first = host.start()
    await server.hears("hello")
    code, said = await host.ended(host.start())
    assert code == 5
    assert f"held by the daemon with PID {first.pid}" in said


@pytest.mark.scenario(43)
async def test_damaged_files_are_set_aside_and_the_daemon_starts(host: Host, server: FakeServer) -> None:
    (host.home / "outbox.sqlite3").write_bytes(b"nonsense" * 1000)
    (host.home / "agents.json").write_text("{")
    run = host.home / "runs" / "40-abc"
    run.mkdir(parents=True)
    (run / "run.json").write_text("[1")
    daemon = host.start()
    await server.report("run.launched")
    daemon.terminate()
    said = (await host.ended(daemon))[1]
    for name in ("outbox.sqlite3", "agents.json", "run.json"):
        assert f"{name} is damaged" in said


@pytest.mark.scenario(39)
async def test_while_the_server_is_away_agents_go_on_and_ends_are_told_afterwards(host: Host, server: FakeServer) -> None:
    host.start()
    pid = (await server.report("run.launched"))["pid"]
    await server.stop()
    server.agents = [agent_entry(run=41, joined=True)]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: list(host.home.glob("runs/41-*/settled")))
    await server.start()
    exited = await server.report("run.exited")
    assert (exited["run"], exited["signal"]) == (41, 9)
    assert (await server.report("run.launched", number=2))["run"] == 42


async def test_a_stop_command_ends_the_process_and_is_confirmed(host: Host, server: FakeServer) -> None:
    host.start()
    await server.report("run.launched")
    await server.tell(type="command", command=91, act="stop_agent", agent=agent_entry(desired="stopped", generation=2, command=91, run=41))
    stopped = await server.report("agent.stopped")
    assert (stopped["command"], stopped["generation"]) == (91, 2)
    assert host.living() == []


async def test_a_run_the_server_has_given_up_is_ended(host: Host, server: FakeServer) -> None:
    server.rejects = {"run.launched"}
    host.start()
    pid = (await server.report("run.launched"))["pid"]
    assert (await server.report("run.exited"))["asked"] == "superseded"
    await until(lambda: not is_running(pid))


async def test_short_questions_and_unknown_commands_are_answered(host: Host, server: FakeServer) -> None:
    host.start()
    await server.report("run.launched")
    await server.tell(type="command", command=90, act="ping")
    assert (await server.hears("result"))["command"] == 90
    await server.tell(type="command", command=92, act="status")
    found = (await server.hears("result", number=2))["data"]
    assert found["connected"] is True
    assert found["agents"][0]["state"] == "running"
    await server.tell(type="command", command=93, act="make_coffee")
    assert "does not know make_coffee" in (await server.report("command.failed"))["message"]
    await server.tell(type="command", command=94, act="abort_run", run=3)
    assert (await server.report("command.completed"))["message"] == "run 3 had already ended"
    task_mode = agent_entry(agent=8, mode="task", command=95)
    await server.tell(type="command", command=95, act="start_agent", agent=task_mode)
    assert "loop mode only" in (await server.report("command.failed", number=2))["message"]


async def test_an_entry_that_is_not_understood_ends_nobody(host: Host, server: FakeServer) -> None:
    host.start()
    pid = (await server.report("run.launched"))["pid"]
    await server.tell(type="snapshot", agents=[{"agent": 7, "desired": "perhaps"}])
    await server.tell(type="command", command=90, act="ping")
    await server.hears("result")
    assert host.living() == [pid]


@pytest.mark.scenario(71)
async def test_what_an_agent_prints_is_streamed_and_nothing_of_it_is_lost_or_doubled(host: Host, server: FakeServer) -> None:
    host.program("import time\nfor n in range(300):\n    print('grün', n, flush=True)\n    time.sleep(0.002)\ntime.sleep(600)")
    host.start()

    def text() -> str:
        return "".join(chunk["text"] for message in server.heard("log") for chunk in message["chunks"])

    await until(lambda: "grün 299\n" in text())
    assert text() == "".join(f"grün {n}\n" for n in range(300))


async def test_a_changed_offer_is_told(host: Host, server: FakeServer) -> None:
    host.start()
    await server.hears("replayed")
    (host.root / "harnesses.toml").write_text("[harnesses.codex]\ncommand = ['no-such-program-here']\n")
    told = await server.hears("harnesses")
    assert [(entry["name"], entry["error"]) for entry in told["harnesses"]] == [
        ("codex", "harness codex: program not found: no-such-program-here")
    ]


async def test_a_broken_configuration_ends_the_start_with_what_is_wrong(host: Host) -> None:
    (host.root / "harnesses.toml").write_text("[harnesses")
    code, said = await host.ended(host.start())
    assert code == 2
    assert "harnesses.toml: not valid TOML" in said


async def test_a_directory_that_is_not_there_ends_the_start(host: Host) -> None:
    code, said = await host.call("agent_daemon", "--allow-dir", str(host.root / "missing"))
    assert code == 2
    assert "there is no such directory" in said


async def test_a_bad_setting_ends_the_start_with_what_is_expected(host: Host) -> None:
    code, said = await host.ended(host.start(CHATROOM_ON_SERVER_LOSS="perhaps"))
    assert code == 2
    assert "CHATROOM_ON_SERVER_LOSS=perhaps: expected continue or abort" in said


async def test_the_other_commands_show_and_end_the_daemon(host: Host, server: FakeServer) -> None:
    assert (await host.call("daemon_status"))[0] == 5
    daemon = host.start()
    pid = (await server.report("run.launched"))["pid"]
    await until(lambda: f'"pid": {pid}' in (host.home / "status.json").read_text())
    code, said = await host.call("daemon_status")
    assert code == 0
    assert f"laptop-7: PID {daemon.pid}, connected to {server.url}" in said
    assert str(pid) in said
    code, said = await host.call("daemon_status", "--json")
    assert json.loads(said)["agents"][0]["run"] == {"id": 41, "pid": pid}
    assert await host.call("daemon_stop", "--keep-agents") == (0, "the daemon has ended; its agents live on\n")
    assert host.living() == [pid]
    assert "1 of its agents live on" in (await host.call("daemon_status"))[1]
    host.start()
    await server.hears("replayed", number=2)
    assert (await host.call("daemon_stop"))[0] == 0
    assert host.living() == []
    assert (await host.call("daemon_stop"))[0] == 5


def test_the_harnesses_of_this_machine_are_listed(tmp_path: Path) -> None:
    (tmp_path / "h.toml").write_text("[harnesses.shell]\ncommand = ['sh']\n[harnesses.codex]\ncommand = ['no-such-program-here']\n")
    command = [sys.executable, "-m", "chatroom.client", "harnesses", "--harnesses", str(tmp_path / "h.toml"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [(entry["name"], entry["ok"]) for entry in json.loads(done.stdout)["harnesses"]] == [("shell", True), ("codex", False)]
