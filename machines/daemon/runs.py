"""The directory of one run: made before its process, and what tells a returning daemon what became of it."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machines.daemon.shim import boot_id
from machines.daemon.state import Identity, Say, read_or_set_aside, set_aside, write_private

NOTE_LIMIT = 16 * 1024


@dataclass(frozen=True)
class RunInfo:
    """Whose run this is; kept in the directory for the daemon's next life."""

    run: int
    agent: int
    generation: int
    room: str
    role: str
    harness: str


@dataclass(frozen=True)
class ExitRecord:
    """How it ended. `lost` means that nobody was there to see it: the machine went down, or the shim itself was killed;
    `never_started`, that no program ever ran."""

    code: int | None
    signal: int | None
    error: str | None
    lines: list[str]
    lost: bool = False
    machine_lost: bool = False
    never_started: bool = False
    ended_at: float = 0.0

    def describe(self) -> str:
        if self.error is not None:
            return f"could not be started: {self.error}"
        if self.machine_lost:
            return "ended with its machine"
        if self.never_started:
            return "was never started"
        if self.lost:
            return "ended together with its shim, which was killed"
        return f"ended with exit code {self.code}" if self.signal is None else f"ended by signal {self.signal}"


@dataclass(frozen=True)
class Note:
    """What a program may say about its end, in the file named by CHATROOM_EXIT_NOTE."""

    failure: str | None = None
    retry_after: float | None = None
    message: str = ""


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RunDirectory({self.path})"

    @classmethod
    def create(cls, root: Path, info: RunInfo, *, key: str) -> "RunDirectory":
        """`key` tells apart equal run numbers of a server whose database began anew."""
        directory = cls(root / f"{info.run}-{key}")
        directory.path.mkdir(mode=0o700, parents=True)
        write_private(directory.path / "run.json", asdict(info))
        return directory

    def info(self, *, say: Say) -> RunInfo | None:
        found = read_or_set_aside(self.path / "run.json", say=say)
        try:
            return RunInfo(**found) if found is not None else None
        except TypeError as error:
            set_aside(self.path / "run.json", problem=str(error), say=say)
            return None

    def take_lock(self) -> int:
        """A descriptor that holds the run's lock; handed on to the shim, so the lock is never free while a shim may come."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock

    def is_held(self) -> bool:
        """Does its shim live? (Or does a daemon just make it.)"""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def write_spec(self, spec: dict[str, Any]) -> None:
        write_private(self.path / "spec.json", spec)

    def read(self, name: str) -> dict[str, Any] | None:
        """One of the shim's files, which are whole or absent; None for a damaged one too."""
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def identity(self, who: str) -> Identity | None:
        """`shim` or `program`, of this boot."""
        pids = self.read("pid.json")
        try:
            if pids is None or pids["boot"] != boot_id():
                return None
            return Identity(int(pids[who]["pid"]), pids[who]["start"])
        except (KeyError, TypeError, ValueError):
            return None

    def exit(self) -> ExitRecord | None:
        """None while it lives. The lock is looked at first: the shim writes the exit before it lets go."""
        held = self.is_held()
        found = self.read("exit.json")
        if found is not None:
            return ExitRecord(
                found.get("code"), found.get("signal"), found.get("error"), found.get("lines", []), ended_at=found.get("ended_at", 0.0)
            )
        if held:
            return None
        pids = self.read("pid.json")
        return ExitRecord(
            None,
            None,
            None,
            LogReader(self.path).last_lines() or self.shim_log(),
            lost=True,
            machine_lost=pids is not None and pids.get("boot") != boot_id(),
            never_started=pids is None,
            ended_at=time.time(),
        )

    def shim_log(self) -> list[str]:
        try:
            return (self.path / "shim.log").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        except OSError:
            return []

    def note(self) -> Note:
        """What the program itself says about its end; anything odd in it is as good as nothing."""
        try:
            with (self.path / "exit-note.json").open("rb") as file:
                found = json.loads(file.read(NOTE_LIMIT))
            retry_after = found.get("retry_after")
            usable = isinstance(retry_after, int | float) and 0 <= retry_after < 10**7
            return Note(
                str(found.get("failure") or "") or None, float(retry_after) if usable else None, str(found.get("message") or "")[:500]
            )
        except (OSError, ValueError, AttributeError):
            return Note()

    def ask_to_stop(self, *, asked: str, grace: float) -> None:
        """Written before the signal, so that a daemon that comes back knows the end was asked for."""
        write_private(self.path / "stop.json", {"asked": asked, "grace": grace})

    def asked(self) -> str | None:
        found = self.read("stop.json")
        return str(found["asked"]) if found and found.get("asked") else None

    def settle(self) -> None:
        """Its end has been handed to the outbox: the log stays, the token goes."""
        # On a full disk, or in a removed directory, nothing is settled: at worst the next daemon reports the same end under the same key.
        with contextlib.suppress(OSError):
            (self.path / "settled").touch()
            for name in ("spec.json", "prompt.md"):
                (self.path / name).unlink(missing_ok=True)

    def is_settled(self) -> bool:
        return (self.path / "settled").exists()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def unsettled(root: Path) -> Iterator[RunDirectory]:
    """Runs of an earlier life of the daemon whose end was not reported yet: living ones, and ended ones."""
    for path in sorted(root.iterdir(), key=lambda one: one.name):
        directory = RunDirectory(path)
        if path.is_dir() and not directory.is_settled():
            yield directory


def remove_old(root: Path, *, older_than: float) -> int:
    """Settled runs whose log's time is over."""
    count = 0
    for path in root.iterdir():
        directory = RunDirectory(path)
        if directory.is_settled() and time.time() - (path / "settled").stat().st_mtime > older_than:
            directory.remove()
            count += 1
    return count


class LogReader:
    """Reads a run's output by the offset of its bytes, over segments; what the limit dropped is a gap."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def segments(self) -> list[tuple[int, Path]]:
        return sorted((int(found.stem.partition("-")[2]), found) for found in self.path.glob("output-*.log"))

    def end(self) -> int:
        segments = self.segments()
        try:
            return segments[-1][0] + segments[-1][1].stat().st_size if segments else 0
        except FileNotFoundError:  # dropped between the two looks
            return self.end()

    def read(self, offset: int, *, limit: int) -> tuple[int, bytes]:
        """The first bytes at or after the offset, up to a gap, and where they begin."""
        begin, found = offset, b""
        for start, path in self.segments():
            if found and start != begin + len(found):
                break
            begin = begin if found else max(start, offset)
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(begin + len(found) - start)
                found += file.read(limit - len(found))
        return (begin, found) if found else (offset, b"")

    def line_start(self, offset: int, *, within: int = 4096) -> int:
        """Where the line begins which that offset is in; the offset itself, if its line is longer than that."""
        begin, before = self.read(max(0, offset - within), limit=within)
        line_feed = before[: max(0, offset - begin)].rfind(b"\n")
        return begin + line_feed + 1 if line_feed >= 0 or begin == 0 else offset

    def last_lines(self, count: int = 20) -> list[str]:
        end = self.end()
        begin, data = self.read(max(0, end - 8192), limit=8192)
        while begin + len(data) < end:
            begin, more = self.read(begin + len(data), limit=8192)
            if not more:
                break
            data += more
            begin -= len(data) - len(more)
        return [line.rstrip("\r") for line in data.decode("utf-8", "replace").split("\n") if line.strip()][-count:]
