"""Records which tests ran, what they prove, and refuses any that was skipped. `scripts/scenario_table.py` prints the table of all calls."""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

RECORD = "CHATROOM_TEST_RECORD"

# This is read before any setting: tests must never touch the home of a server that somebody uses. The processes of xdist inherit it.
if "CHATROOM_HOME" not in os.environ:
    os.environ["CHATROOM_HOME"] = tempfile.mkdtemp(prefix="chatroom-tests-")
    atexit.register(shutil.rmtree, os.environ["CHATROOM_HOME"], ignore_errors=True)


def pytest_configure(config: pytest.Config) -> None:
    # In the processes of xdist the tests run; here their reports arrive.
    if os.environ.get(RECORD) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ[RECORD])), "scenario-recorder")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("scenario"):
            if not marker.args or not all(isinstance(number, int) for number in marker.args):
                raise pytest.UsageError(f"{item.nodeid}: scenario{marker.args}: expected a number, for example scenario(16)")
            item.user_properties += [("scenario", number) for number in marker.args]


class Recorder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.scenarios: dict[int, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ids.add(report.nodeid)
        if report.skipped:
            self.skipped[report.nodeid] = reason_of(report)
        if report.when == "call" and report.passed:
            for number in scenarios_of(report.user_properties):
                self.scenarios.setdefault(number, set()).add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid] = reason_of(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        record = {
            "ids": sorted(self.ids),
            "skipped": self.skipped,
            "scenarios": {str(number): sorted(ids) for number, ids in sorted(self.scenarios.items())},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(record, indent=1))
        if self.skipped and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.skipped:
            terminalreporter.section("skipped, which counts as failed", red=True)
            for nodeid, reason in sorted(self.skipped.items()):
                terminalreporter.write_line(f"{nodeid}: {reason}")


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return str(getattr(report, "wasxfail", "") or report.longrepr)


def scenarios_of(properties: Iterable[tuple[str, object]]) -> set[int]:
    return {value for name, value in properties if name == "scenario" and isinstance(value, int)}
