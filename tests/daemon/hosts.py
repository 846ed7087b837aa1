"""A machine with real daemons, against a server played by the test."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from machines.daemon.state import Credentials, write_private
from tests.daemon.fakes import SLEEPER, until
from tests.daemon.processes import marked
from tests.daemon.server import TOKEN, FakeServer, agent_entry

ROOT = Path(__file__).parents[2]


class Host:
    """A machine: its home, its harnesses, and the daemons started on it."""

    def __init__(self, root: Path, server: FakeServer) -> None:
        self.root, self.server, self.marker = root, server, f"{root}-{os.getpid()}"
        self.home, self.work = root / "home", root / "work"
        self.work.mkdir()
        self.home.mkdir(mode=0o700)
        write_private(self.home / "machine.json", Credentials(server.url, 3, "laptop-7", TOKEN).__dict__)
        server.directory = str(self.work)
        server.agents = [agent_entry()]
        self.daemons: list[subprocess.Popen[str]] = []
        self.program(SLEEPER)

    def program(self, code: str, *, name: str = "agent") -> None:
        path = self.root / f"{name}.py"
        path.write_text(code)
        command = json.dumps([sys.executable, str(path)])
        (self.root / "harnesses.toml").write_text(f"[harnesses.{name}]\ncommand = {command}\nset = {{MARKER = '{self.marker}'}}\n")

    def command(self, name: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "chatroom.client", name, "--server", self.server.url, "--home", str(self.home), *options]

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATROOM_")}
        places = {
            "CHATROOM_HARNESSES": str(self.root / "harnesses.toml"),
            "XDG_CONFIG_HOME": str(self.root),
            "CHATROOM_HOME": str(self.root),
        }
        return {**kept, **places, **more}

    def start(self, **environment: str) -> subprocess.Popen[str]:
        command = self.command("agent_daemon", "--allow-dir", str(self.work))
        daemon = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.daemons.append(daemon)
        return daemon

    async def call(self, name: str, *options: str) -> tuple[int, str]:
        """One of the other commands: its exit code, and what it printed."""
        return await asyncio.to_thread(self.call_now, self.command(name, *options))

    def call_now(self, command: list[str]) -> tuple[int, str]:
        done = subprocess.run(command, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    async def ended(self, daemon: subprocess.Popen[str], *, within: float = 20) -> tuple[int, str]:
        out, err = await asyncio.wait_for(asyncio.to_thread(daemon.communicate), within)
        return daemon.returncode, out + err

    async def printed(self) -> None:
        await until(lambda: any(path.stat().st_size for path in self.home.glob("runs/*/output-*.log")))

    def living(self) -> list[int]:
        return marked(self.marker)

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.kill()
            daemon.communicate()
        for path in self.home.glob("runs/*/pid.json"):
            for pid in (read_pids(path)["program"]["pid"], read_pids(path)["shim"]["pid"]):
                with contextlib.suppress(ProcessLookupError):
                    if "shim.py" in (Path(f"/proc/{pid}/cmdline").read_text() if Path(f"/proc/{pid}").exists() else ""):
                        os.kill(pid, signal.SIGKILL)
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def read_pids(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
