"""Whoever starts the tests may have told them to ignore signals (nohup, a shell's background job): that must not decide how they end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

DEAF = "trap '' HUP INT QUIT TERM USR1; exec \"$@\""


def test_no_signal_is_ignored_but_those_python_itself_ignores() -> None:
    ignored = {number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN}
    assert ignored <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_tests_that_are_started_with_signals_ignored_hear_them_all_the_same() -> None:
    other = f"{Path(__file__)}::{test_no_signal_is_ignored_but_those_python_itself_ignores.__name__}"
    call = ["sh", "-c", DEAF, "sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", other]
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CHATROOM_TEST_RECORD"))}
    done = subprocess.run(call, cwd=Path(__file__).parents[1], env=mine, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
