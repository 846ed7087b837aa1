import asyncio
import os
import signal

import pytest

from machines.daemon.messages import PastExit
from machines.daemon.policy import Limits
from tests.daemon.fakes import CRASHING, SLEEPER, STUBBORN, Machine, entry, until

TELLING = """
import os, sys
print(os.getcwd(), sys.argv[1:], sys.stdin.read(), sep="\\n")
print(*sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("CHATROOM")), sep="\\n")
"""
NOTING = """
import json, os
with open(os.environ["CHATROOM_EXIT_NOTE"], "w") as file:
    json.dump({"failure": "rate_limited", "retry_after": 0.2, "message": "quota until noon"}, file)
raise SystemExit(75)
"""


@pytest.mark.scenario(48)
async def test_a_start_walks_through_every_step_and_the_process_runs(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    launched = await machine.report("run.launched")
    assert [report["report"] for report in machine.reports()] == ["run.validated", "run.preparing", "run.launched"]
    assert {(report["run"], report["agent"], report["generation"]) for report in machine.reports()} == {(41, 7, 1)}
    assert machine.living() == [launched["pid"]]
    assert supervisor.vouched() == 41


async def test_the_process_gets_its_runs_token_its_directory_and_its_prompt(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATROOM_HOME", "/secret")
    machine.program(TELLING, extra='stdin = "prompt"\n')
    machine.supervise(entry())
    lines = (await machine.report("run.exited"))["lines"]
    assert lines[:3] == [str(machine.root / "work"), "['builder']", "You build."]
    names = {line.partition("=")[0]: line.partition("=")[2] for line in lines[3:]}
    assert names["CHATROOM_TOKEN"] == "token of 41"
    assert names["CHATROOM_SERVER"] == "http://server.test"
    assert (names["CHATROOM_ROOM"], names["CHATROOM_ROLE"], names["CHATROOM_RUN"]) == ("demo", "builder", "41")
    assert "CHATROOM_HOME" not in names


@pytest.mark.scenario(51)
async def test_a_crash_is_reported_with_its_decision_and_followed_by_a_restart(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    supervisor.update(entry(run=41, joined=True))
    await machine.printed()
    os.kill(pid, signal.SIGKILL)
    exited = await machine.report("run.exited")
    assert (exited["code"], exited["signal"], exited["asked"], exited["failure"]) == (None, 9, None, "crash")
    assert exited["message"] == "ended by signal 9"
    assert exited["lines"] == ["up"]
    assert exited["decision"] == {"do": "restart", "in": pytest.approx(0.05, rel=0.3), "attempt": 1, "attempts": 3, "verdict": "faulty"}
    assert (await machine.report("run.launched", number=2))["run"] == 42
    assert machine.living() == [(await machine.report("run.launched", number=2))["pid"]]


@pytest.mark.scenario(52)
async def test_an_agent_whose_every_attempt_fails_is_given_up_with_its_last_lines(machine: Machine) -> None:
    machine.program(CRASHING)
    supervisor = machine.supervise(entry())
    last = await machine.report("run.exited", number=3)
    assert last["decision"] == {
        "do": "exhausted",
        "reason": "3 of 3 attempts failed; the last: ended with exit code 3",
        "verdict": "faulty",
    }
    assert last["lines"] == ["cannot go on"]
    assert [ask["attempt"] for ask in machine.link.asked] == [1, 2, 3]
    supervisor.update(entry(exhausted=1))
    machine.program(SLEEPER)
    supervisor.update(entry(generation=2))
    assert (await machine.report("run.launched", number=4))["generation"] == 2
    assert len(machine.link.opened) == 4


@pytest.mark.scenario(97)
async def test_an_exhausted_agent_is_not_started_by_a_reconnect(machine: Machine) -> None:
    supervisor = machine.supervise(entry(exhausted=1))
    for _ in range(10):
        supervisor.update(entry(exhausted=1))
        await asyncio.sleep(0.005)
    assert machine.link.asked == []
    assert machine.reports() == []


@pytest.mark.scenario(49)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harness": "codex"}, "no harness codex in"),
        ({"directory_given": "/"}, "directory / is outside of what this machine allows"),
        ({"directory_given": "{work}/../home"}, "leads to"),
        ({"directory_given": "{work}/missing"}, "No such file or directory"),
    ],
)
async def test_what_cannot_be_started_fails_in_validation_and_is_exhausted_at_once(
    machine: Machine, change: dict[str, str], message: str
) -> None:
    for name, value in change.items():
        setattr(machine.link, name, value.replace("{work}", str(machine.root / "work")))
    machine.supervise(entry())
    failed = await machine.report("run.failed")
    assert message in failed["message"]
    assert (failed["stage"], failed["failure"]) == ("validating", "validation")
    assert failed["decision"] == {"do": "exhausted", "reason": failed["message"], "verdict": "faulty"}
    assert len(machine.link.opened) == 1
    assert machine.living() == []


async def test_a_harness_that_is_mended_works_at_the_next_start_by_a_person(machine: Machine) -> None:
    (machine.root / "harnesses.toml").write_text("[harnesses.agent\n")
    supervisor = machine.supervise(entry())
    assert "not valid TOML" in (await machine.report("run.failed"))["message"]
    machine.program(SLEEPER)
    supervisor.update(entry(generation=2))
    assert await machine.report("run.launched")


async def test_a_program_that_cannot_be_executed_says_so(machine: Machine) -> None:
    broken = machine.root / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o700)
    (machine.root / "harnesses.toml").write_text(f"[harnesses.agent]\ncommand = ['{broken}']\n")
    machine.supervise(entry())
    exited = await machine.report("run.exited", number=3)
    assert exited["failure"] == "launch"
    assert exited["message"] == f"could not be started: {broken}: No such file or directory"
    assert exited["decision"]["do"] == "exhausted"


async def test_a_removed_agent_is_ended_and_no_longer_looked_after(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    supervisor.update(None)
    await machine.over(machine.supervisors[0][1])
    assert machine.named("run.exited")[0]["asked"] == "removed"
    assert machine.living() == []


@pytest.mark.scenario(44)
async def test_abort_ends_the_run_and_starts_anew_without_a_delay_or_a_count(machine: Machine) -> None:
    machine.around.limits = Limits(delay=600)
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    assert supervisor.abort(asked="abort", run=40) is False
    assert supervisor.abort(asked="abort", run=41) is True
    assert (await machine.report("run.launched", number=2))["run"] == 42
    exited = machine.named("run.exited")[0]
    assert (exited["asked"], exited["decision"]["do"], exited["decision"]["in"]) == ("abort", "restart", 0)
    assert [ask["attempt"] for ask in machine.link.asked] == [1, 1]


@pytest.mark.scenario(56)
async def test_a_crash_after_a_stop_and_a_start_is_a_crash(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    supervisor.update(entry(generation=2, desired="stopped"))
    await machine.report("agent.stopped")
    supervisor.update(entry(generation=3))
    os.kill((await machine.report("run.launched", number=2))["pid"], signal.SIGTERM)
    assert (await machine.report("run.exited", number=2))["failure"] == "crash"


async def test_a_process_that_does_not_join_in_time_has_failed_its_attempt(machine: Machine) -> None:
    machine.around.limits = Limits(delay=0.05, deadline=0.3)
    machine.link.joins = False
    machine.supervise(entry())
    exited = await machine.report("run.exited", number=3)
    assert (exited["asked"], exited["failure"]) == ("deadline", "no_join")
    assert exited["decision"]["do"] == "exhausted"
    assert machine.living() == []


async def test_a_lost_hint_of_joining_ends_nobody(machine: Machine) -> None:
    machine.around.limits = Limits(deadline=0.2)
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    await until(lambda: any(ask["ask"] == "joined" for ask in machine.link.asked))
    await asyncio.sleep(0.1)
    assert machine.living() == [pid]


async def test_time_without_a_server_does_not_count_against_an_agent(machine: Machine) -> None:
    machine.around.limits = Limits(deadline=0.2)
    machine.link.joins = False
    machine.supervise(entry())
    await machine.report("run.launched")
    machine.link.lose()
    await asyncio.sleep(0.5)
    assert len(machine.living()) == 1
    machine.link.return_(now=machine.around.now())
    assert (await machine.report("run.exited"))["failure"] == "no_join"


@pytest.mark.scenario(39)
async def test_without_a_server_nothing_is_started_and_what_ends_is_kept_for_later(machine: Machine) -> None:
    machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    machine.link.lose()
    os.kill(pid, signal.SIGKILL)
    assert (await machine.report("run.exited"))["decision"]["do"] == "restart"
    await asyncio.sleep(0.2)
    assert machine.link.opened == [41]
    machine.link.return_(now=machine.around.now())
    assert (await machine.report("run.launched", number=2))["run"] == 42


async def test_a_refused_run_is_not_asked_for_again_at_once(machine: Machine) -> None:
    machine.link.refusal = {"error": {"code": "busy", "message": "run 40 is not over"}}
    supervisor = machine.supervise(entry())
    await until(lambda: machine.link.asked)
    await asyncio.sleep(0.2)
    assert len(machine.link.asked) == 1
    assert "run 40 is not over" in supervisor.note or "restart in" in supervisor.note


@pytest.mark.scenario(59)
async def test_a_temporary_failure_waits_as_its_note_says_and_uses_up_nothing(machine: Machine) -> None:
    machine.program(NOTING)
    machine.supervise(entry())
    fifth = await machine.report("run.exited", number=5)
    assert fifth["failure"] == "transient"
    assert fifth["message"] == "ended with exit code 75: quota until noon"
    assert fifth["decision"]["attempt"] == 1
    assert fifth["decision"]["in"] >= 0.2


@pytest.mark.scenario(61)
async def test_what_an_agent_prints_changes_nothing(machine: Machine) -> None:
    machine.program("print('error: rate limit 429, fatal, crashed', flush=True)\n" + SLEEPER)
    machine.supervise(entry())
    await machine.report("run.launched")
    await machine.printed()
    await asyncio.sleep(0.1)
    assert [report["report"] for report in machine.reports()] == ["run.validated", "run.preparing", "run.launched"]


@pytest.mark.scenario(93)
async def test_a_stopped_process_is_warned_about_then_frozen_then_goes_on(machine: Machine) -> None:
    supervisor = machine.supervise(entry())
    pid = (await machine.report("run.launched"))["pid"]
    supervisor.freezing.warn_after, supervisor.freezing.frozen_after = 0.1, 0.3
    os.kill(pid, signal.SIGSTOP)

    async def look(name: str) -> None:
        while not machine.named(name):
            await supervisor.look_whether_frozen()
            await asyncio.sleep(0.01)

    await machine.over(look("run.frozen"))
    assert supervisor.vouched() is None
    os.kill(pid, signal.SIGCONT)
    await machine.over(look("run.continued"))
    assert [report["report"] for report in machine.reports()][3:] == ["run.stopped", "run.frozen", "run.continued"]
    assert supervisor.vouched() == 41
    assert machine.living() == [pid]


@pytest.mark.scenario(60)
async def test_closing_with_the_daemon_leaves_no_process_and_says_each_agent_has_stopped(machine: Machine) -> None:
    machine.program(STUBBORN)
    supervisor = machine.supervise(entry())
    await machine.report("run.launched")
    supervisor.close("daemon_stop")
    await machine.over(machine.supervisors[0][1])
    assert machine.living() == []
    assert machine.named("run.exited")[0]["decision"] == {"do": "none", "verdict": "asked"}
    assert (await machine.report("agent.stopped"))["command"] is None


async def test_the_history_of_the_server_counts_after_a_restart_of_the_daemon(machine: Machine) -> None:
    machine.program(CRASHING)
    past = tuple(PastExit(run=n, generation=1, age=60.0 - n, joined=True, verdict="faulty") for n in range(4))
    machine.supervise(entry(history=past))
    assert (await machine.report("run.exited"))["decision"]["reason"].startswith("5 faulty exits in 10 min")


@pytest.mark.scenario(58)
async def test_after_most_have_died_together_restarts_go_one_at_a_time(machine: Machine) -> None:
    supervisors = [machine.supervise(entry(agent=agent), agent=agent) for agent in range(1, 5)]
    machine.around.agents = lambda: 4
    await machine.report("run.launched", number=4)
    machine.link.lose()  # so that nothing starts again before all four deaths are known
    for pid in machine.living():
        os.kill(pid, signal.SIGKILL)
    await machine.report("run.exited", number=4)
    machine.link.return_(now=machine.around.now())
    for done in range(1, 5):
        launched = await machine.report("run.launched", number=4 + done)
        await asyncio.sleep(0.15)
        assert len(machine.named("run.launched")) == 4 + done
        next(one for one in supervisors if one.agent == launched["agent"]).update(
            entry(agent=launched["agent"], run=launched["run"], joined=True)
        )


@pytest.mark.scenario(58)
async def test_who_is_stopped_while_it_has_the_turn_leaves_it_to_the_others(machine: Machine) -> None:
    brake = machine.around.brake
    brake.holder = entry().agent
    machine.supervise(entry(desired="stopped"))
    await until(lambda: brake.holder is None)


async def test_settled_runs_keep_their_log_and_lose_their_token(machine: Machine) -> None:
    machine.program(CRASHING)
    machine.supervise(entry())
    await machine.report("run.exited")
    directory = next(machine.runs.glob("41-*"))
    await until((directory / "settled").exists)
    assert not (directory / "spec.json").exists()
    assert b"cannot go on" in b"".join(path.read_bytes() for path in directory.glob("output-*"))
