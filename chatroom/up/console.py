"""What `up` says to the person in front of it."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path


class CannotStart(Exception):
    """Something has to be put right by a person before Chatroom can start; the message says what."""


def say(text: str) -> None:
    """One line, at once. A terminal that went away must not end the server."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        # Nobody reads it any more: whatever comes later goes nowhere.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def progress(text: str) -> None:
    say(f"· {text}")


def report(text: str) -> None:
    """A line about something that happened later on, with its time."""
    say(f"{time.strftime('%H:%M:%S')} {text}")


def block(lines: Sequence[str]) -> None:
    width = max(len(line) for line in lines)
    say("\n".join(["", "─" * min(width, 100), *lines, "─" * min(width, 100), ""]))
