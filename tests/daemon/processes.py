"""Real processes for the daemon's tests: starting shims by hand, waiting on conditions, finding what is left."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

SHIM = Path(__file__).parents[2] / "machines" / "daemon" / "shim.py"
Found = TypeVar("Found")


def eventually(condition: Callable[[], Found], *, within: float = 15.0, what: str = "") -> Found:
    """The condition's first true value; fails with its last one when the time is over."""
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, psutil.NoSuchProcess):
            if found := condition():
                return found
        assert time.monotonic() < deadline, what or f"not within {within} s: {condition}"
        time.sleep(0.01)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def is_running(pid: int) -> bool:
    """Zombies are not running: nobody may have collected them yet."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(marker: str) -> list[int]:
    """Every living process with the marker in its environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("MARKER") == marker and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


class Shims:
    """Starts shims in one directory each; whatever is left at the end of a test is killed."""

    def __init__(self, root: Path) -> None:
        self.root, self.marker = root, f"{root}-{os.getpid()}"
        self.children: list[subprocess.Popen[bytes]] = []

    def start(
        self, program: str | list[str], *, name: str = "1", under: Sequence[str] = (), **spec: Any
    ) -> tuple[Path, subprocess.Popen[bytes]]:
        """`program` is shell text, or a whole argument list; `under` is what starts the shim, as nohup would."""
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        argv = ["/bin/sh", "-c", program] if isinstance(program, str) else program
        env = {"PATH": os.environ["PATH"], "MARKER": self.marker}
        (directory / "spec.json").write_text(json.dumps({"argv": argv, "env": env, "cwd": str(directory), **spec}))
        return directory, self.again(directory, under=under)

    def again(self, directory: Path, *, under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        command = [*under, sys.executable, "-S", "-E", str(SHIM), str(directory / "spec.json")]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.children.append(child)
        return child

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            if child.stderr is not None:
                child.stderr.close()
        for pid in marked(self.marker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


def started(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = eventually(lambda: read(directory / "pid.json"))
    return found


def ended(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = eventually(lambda: read(directory / "exit.json"))
    return found


def output(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(directory.glob("output-*.log")))


def shims_in(root: Path) -> Iterator[Shims]:
    shims = Shims(root)
    yield shims
    shims.end()
