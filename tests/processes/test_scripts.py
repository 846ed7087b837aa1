"""The scripts that CI runs on their own too: each ends well on this stack, having proven all it names."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.processes.conftest import Stack, plain_environment
from tests.processes.program import ROOT, Command

# With words that its steps say when they have passed.
LIMIT = 500
SCRIPTS = [
    pytest.param("state_transitions", ["SIGHUP in the middle of a run", "an invalid configuration"], marks=pytest.mark.scenario(44)),
    pytest.param("error_recovery", ["bad credentials", "a poison task fails", "fail-fast"], marks=pytest.mark.scenario(27)),
    pytest.param(
        "signal_handling",
        ["SIGHUP ends neither", "SIGSTOP of the daemon", "SIGSTOP of an agent", "SIGTERM", "agents go on", "cleaned up"],
        marks=[pytest.mark.scenario(number) for number in (38, 39, 44, 46, 93)],
    ),
]


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize(("name", "proven"), SCRIPTS)
def test_the_script_passes(name: str, proven: list[str], stack: Stack, tmp_path: Path) -> None:
    environment = {**plain_environment(), **stack.environment(), "TMPDIR": str(tmp_path), "VIRTUAL_ENV": sys.prefix}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    script = Command(["bash", str(ROOT / "scripts" / f"test_{name}.sh")], environment=environment, folder=tmp_path, name=name)
    try:
        code = script.wait(within=LIMIT)
    finally:
        end(script)
    assert code == 0, script.output
    assert script.stdout.splitlines()[-1].endswith("passed, 0 failed"), script.output
    passed = [line for line in script.stdout.splitlines() if line.startswith("ok: ")]
    assert [words for words in proven if not any(words in line for line in passed)] == [], script.output


def end(script: Command) -> None:
    """One that takes too long still has a server and daemons: they are of its group."""
    if script.returncode is None:
        os.killpg(script.pid, signal.SIGTERM)
        script.wait(within=60)
