"""Numbers that a person set in the environment: wrong ones are refused before anything begins."""

from __future__ import annotations

import os

from chatroom.client.errors import usage_error


def seconds_in(name: str, *, default: float) -> float:
    found = os.environ.get(name) or default
    try:
        seconds = float(found)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise usage_error(f"{name}={found}: expected seconds, for example {default:g}")
    return seconds
