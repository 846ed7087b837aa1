"""The other commands of a machine: about its daemon, and about what it may start."""

import json
import os
import signal
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from chatroom.client.credentials import find_place
from chatroom.client.credentials import home as server_home
from chatroom.client.errors import ClientError
from chatroom.client.output import clock, emit, table
from chatroom.client.server import Server, path
from machines.daemon.errors import BadConfiguration
from machines.daemon.harnesses import default_path, describe, load
from machines.daemon.main import add_home, find_home, say
from machines.daemon.runs import unsettled
from machines.daemon.state import Home

STOP_WITHIN = 30.0
NOT_RUNNING = 5


def home_arguments(parser: ArgumentParser) -> None:
    add_home(parser)


def open_home(args: Namespace) -> Home:
    """The one that was named, else this host's own, else the one that `up` looks after."""
    home = Home(find_home(args, find_place(args).url), say=say)
    beside = Home(server_home() / "daemon", say=say)
    is_named = args.home or os.environ.get("CHATROOM_DAEMON_HOME") or os.environ.get("CHATROOM_TOKEN")
    return beside if not is_named and not home.is_held() and (beside.is_held() or not home.path.exists()) and beside.path.exists() else home


def show_status(args: Namespace) -> int:
    """Exit 0 when a daemon runs; 5 when none does."""
    home = open_home(args)
    status = read_status(home)
    is_running = home.is_held()
    if is_running:
        seen = ask_server(args, str(status.get("machine", "")))
        answer = {"running": True, "home": str(home.path), **status, "server_says": seen}
        emit(answer, f"{as_text(status)}\n{told(seen)}", as_json=args.json)
        return 0
    living = [directory.path.name for directory in unsettled(home.runs) if directory.is_held()] if home.runs.is_dir() else []
    text = f"no daemon runs for {home.path}" + (f"; {len(living)} of its agents live on" if living else "")
    emit({"running": False, "home": str(home.path), "living_runs": living}, text, as_json=args.json)
    return NOT_RUNNING


def ask_server(args: Namespace, machine: str) -> dict[str, Any] | None:
    """What the server thinks of this machine; None without a sign-in, or without an answer in time."""
    place = find_place(args)
    if not (place.token and machine):
        return None
    try:
        found = Server(place.url, place.token, patience=0).get(path("machines", machine))
    except ClientError as error:
        return {"error": error.message}
    return {name: found[name] for name in ("name", "status", "last_seen_at", "agents")}


def told(seen: dict[str, Any] | None) -> str:
    if seen is None:
        return "the server was not asked: not signed in"
    if "error" in seen:
        return f"the server: {seen['error']}"
    agents = ", ".join(f"{one['role']} of {one['room']} {one['status']}" for one in seen["agents"]) or "no agents"
    return f"the server: {seen['status']}, last sign of life {clock(seen['last_seen_at'])}; {agents}"


def read_status(home: Home) -> dict[str, Any]:
    try:
        found = json.loads((home.path / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def as_text(status: dict[str, Any]) -> str:
    if "machine" not in status:
        return f"the daemon with PID {status.get('process', {}).get('pid', '?')} is starting"
    link = "connected" if status["connected"] else "not connected, trying"
    head = f"{status['machine']}: PID {status['process']['pid']}, {link} to {status['server']}"
    rows: list[list[object]] = [
        [one.get("room", ""), one.get("role", one["agent"]), (one["run"] or {}).get("pid", ""), one["state"]] for one in status["agents"]
    ]
    return f"{head}\n{table(['room', 'role', 'PID', 'state'], rows)}" if rows else f"{head}\nno agents"


def stop_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--keep-agents", action="store_true", help="end the daemon alone; the next one takes the agents over")
    add_home(parser)


def stop(args: Namespace) -> int:
    home = open_home(args)
    holder = home.holder() if home.is_held() else None
    if holder is None:
        raise ClientError(f"no daemon runs for {home.path}", exit_code=NOT_RUNNING, code="not_running")
    holder.signal(signal.SIGUSR1 if args.keep_agents else signal.SIGTERM)
    deadline = time.monotonic() + STOP_WITHIN
    while holder.is_alive() and home.is_held():
        if time.monotonic() > deadline:
            raise ClientError(f"the daemon with PID {holder.pid} did not end within {STOP_WITHIN:g} s", code="still_running")
        time.sleep(0.05)
    text = "the daemon has ended" + ("; its agents live on" if args.keep_agents else ", and its agents")
    emit({"stopped": True, "pid": holder.pid, "agents_kept": args.keep_agents}, text, as_json=args.json)
    return 0


def harness_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--harnesses", metavar="FILE", help="the file to read ($XDG_CONFIG_HOME/chatroom/harnesses.toml)")


def show_harnesses(args: Namespace) -> int:
    """Exit 0 when every entry can be started; 2 when one cannot."""
    file = Path(args.harnesses).expanduser() if args.harnesses else default_path()
    try:
        entries = [describe(harness) for harness in load(file).values()]
    except BadConfiguration as error:
        raise ClientError(str(error), exit_code=error.exit_code, code="bad_configuration") from None
    rows: list[list[object]] = [[one["name"], one["version"], ", ".join(one["models"]), one["error"] or "ok"] for one in entries]
    text = (
        table(["harness", "version", "models", "state"], rows)
        if rows
        else f"no harness in {file}; docs/harnesses.md shows how to write one"
    )
    emit({"file": str(file), "harnesses": entries}, text, as_json=args.json)
    return 0 if all(one["ok"] for one in entries) else 2
