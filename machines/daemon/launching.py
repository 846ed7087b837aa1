"""From a grant to a process: everything that can be checked is checked first, in words for the page."""

import asyncio
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines.daemon import process
from machines.daemon.errors import StartRefused
from machines.daemon.harnesses import Harness, resolve_directory
from machines.daemon.messages import Grant
from machines.daemon.runs import RunDirectory, RunInfo
from machines.daemon.surroundings import Surroundings

PROMPT = "prompt.md"
NOTE = "exit-note.json"


@dataclass(frozen=True)
class Prepared:
    grant: Grant
    harness: Harness
    model: str
    directory: Path


async def prepare(grant: Grant, around: Surroundings) -> Prepared:
    """Raises `StartRefused`. Looks at files, so not on the loop."""
    return await asyncio.to_thread(check, grant, around)


def check(grant: Grant, around: Surroundings) -> Prepared:
    if grant.mode != "loop":
        raise StartRefused(f"mode {grant.mode}: this daemon runs agents in loop mode only")
    harness = around.book.find(grant.harness)
    if problem := harness.problem():
        raise StartRefused(problem)
    model = harness.choose_model(grant.model)
    return Prepared(grant, harness, model, resolve_directory(grant.directory, allowed=around.allowed))


async def launch(info: RunInfo, prepared: Prepared, *, around: Surroundings) -> process.AgentProcess:
    """Raises OSError when not even the shim can be started."""
    directory = await asyncio.to_thread(make_directory, info, prepared, around)
    return process.start(directory, info, make_spec(directory, info, prepared, around))


def make_directory(info: RunInfo, prepared: Prepared, around: Surroundings) -> RunDirectory:
    directory = RunDirectory.create(around.runs, info, key=secrets.token_hex(6))
    (directory.path / PROMPT).write_text(prepared.grant.prompt, encoding="utf-8")
    return directory


def make_spec(directory: RunDirectory, info: RunInfo, prepared: Prepared, around: Surroundings) -> dict[str, Any]:
    grant, harness, prompt = prepared.grant, prepared.harness, str(directory.path / PROMPT)
    values = {"model": prepared.model, "dir": str(prepared.directory), "room": grant.room, "role": grant.role, "prompt_file": prompt}
    given = {
        "CHATROOM_SERVER": around.server,
        "CHATROOM_TOKEN": grant.token,
        "CHATROOM_ROOM": grant.room,
        "CHATROOM_ROLE": grant.role,
        "CHATROOM_RUN": str(info.run),
        "CHATROOM_PROMPT_FILE": prompt,
        "CHATROOM_EXIT_NOTE": str(directory.path / NOTE),
    }
    environment = harness.environment(given=given)
    environment["PATH"] = with_our_commands(environment.get("PATH", ""))
    return {
        "argv": harness.arguments(values),
        "env": environment,
        "cwd": str(prepared.directory),
        "stdin": prompt if harness.stdin == "prompt" else None,
        "log_limit": harness.log_limit,
        "grace": around.settings.stop_grace,
    }


def with_our_commands(path: str) -> str:
    """Agents find `chatroom`, wherever it is installed; last, so that their `python` stays theirs."""
    return f"{path or '/usr/local/bin:/usr/bin:/bin'}:{Path(sys.executable).parent}"
