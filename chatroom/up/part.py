"""One part of the server: what it is, how it is started, how its end reads."""

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from django.conf import settings

STEADY_AFTER = 60.0


@dataclass
class Backoff:
    """How long to wait before the next start: 1, 2, 4 … 30 s; a part that had lived a minute begins anew."""

    failures: int = 0
    first: float = 1.0
    longest: float = 30.0

    def after(self, *, lived: float) -> float:
        self.failures = 1 if lived >= STEADY_AFTER else self.failures + 1
        return min(self.first * 2 ** min(self.failures - 1, 10), self.longest)


def backoff_as_set() -> Backoff:
    return Backoff(first=settings.PART_RESTART_DELAY, longest=settings.PART_RESTART_LIMIT)


@dataclass
class Part:
    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    # The broker ends after those that talk to it; who looks after processes of its own needs the others for a moment longer.
    ends_last: bool = False
    ends_first: bool = False
    # What it gets when `up` is killed (once for each thread of `up`, so it must be harmless twice), and when it is to end at once.
    orphan_signal: signal.Signals = signal.SIGKILL
    kill_signal: signal.Signals = signal.SIGKILL
    # The exit code after which no other start would help, and why.
    last_exit: tuple[int, str] | None = None
    backoff: Backoff = field(default_factory=backoff_as_set)
    pid: int | None = None

    def bound_command(self) -> list[str]:
        """The command, through the helper that lets it not outlive this process."""
        bind = [sys.executable, "-I", "-S", str(Path(__file__).with_name("bind.py")), str(os.getpid())]
        return [*bind, f"--signal={self.orphan_signal.value}", *self.command]


def managed(name: str, *arguments: str, manage: Path) -> Part:
    """A part that is a management command of ours."""
    return Part(name=name, command=[sys.executable, str(manage), *arguments])


def describe_exit(returncode: int) -> str:
    if returncode >= 0:
        return f"exit {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"
