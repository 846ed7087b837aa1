"""Starts a program that cannot outlive its parent: `python bind.py PARENT_PID [--signal=N] PROGRAM ARGUMENT…`. Standard library only."""

import ctypes
import os
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command, number = int(sys.argv[1]), sys.argv[2:], int(signal.SIGKILL)
    if command[0].startswith("--signal="):
        number = int(command.pop(0).partition("=")[2])
    if sys.platform != "linux":
        stay(parent, command, number=number)
    # Usually SIGKILL, since everything survives it by design, and a stopped or stuck process obeys nothing else. It outlives the exec.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked to be told
        sys.exit(f"bind: the parent {parent} has ended already")
    os.execv(command[0], command)


def stay(parent: int, command: list[str], *, number: int) -> None:
    """Where the kernel does not tell: remain the program's parent, and look every half second."""
    process = subprocess.Popen(command)
    for passed in (signal.SIGTERM, signal.SIGINT):
        signal.signal(passed, lambda received, _frame: process.send_signal(received))
    while process.poll() is None:
        if os.getppid() != parent:
            process.send_signal(number)
        time.sleep(0.5)
    if process.returncode < 0:
        signal.signal(-process.returncode, signal.SIG_DFL)
        os.kill(os.getpid(), -process.returncode)
    sys.exit(process.returncode)


if __name__ == "__main__":
    main()
