"""The last word of the server, kept for a daemon that returns before its server does; the server's next word replaces it."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from machines.daemon.messages import AgentEntry, BadMessage
from machines.daemon.state import Say, read_or_set_aside

FILE = "agents.json"


def remember(home: Path, entries: list[AgentEntry], *, say: Say) -> None:
    path = home / FILE
    content = json.dumps({"at": time.time(), "agents": [asdict(entry) for entry in entries]})
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        say(f"cannot write {path}: {error.strerror}")


def remembered(home: Path, *, say: Say) -> dict[int, AgentEntry]:
    """By agent; the ages in their histories are those of now."""
    found = read_or_set_aside(home / FILE, say=say)
    if found is None:
        return {}
    try:
        passed = max(0.0, time.time() - float(found["at"]))
        for agent in found["agents"]:
            for past in agent["history"]:
                past["age"] += passed
        entries = [AgentEntry.parse(agent) for agent in found["agents"]]
    except (KeyError, TypeError, ValueError, BadMessage) as error:
        say(f"{home / FILE} is of no use ({error}): waiting for the server's word")
        return {}
    return {entry.agent: entry for entry in entries}
