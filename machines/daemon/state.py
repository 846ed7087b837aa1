"""The daemon's home: who holds it, its instance, the machine's token; and which process a PID really is."""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from machines.daemon.errors import AnotherDaemon
from machines.daemon.shim import boot_id, start_time, sync_directory

Say = Callable[[str], None]


@dataclass(frozen=True)
class Identity:
    """A process, told from a later one with the same PID."""

    pid: int
    start: float

    def is_alive(self) -> bool:
        return process_start(self.pid) == self.start and not is_zombie(self.pid)

    def is_stopped(self) -> bool:
        try:
            return self.is_alive() and psutil.Process(self.pid).status() in {psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP}
        except psutil.Error:
            return False

    def signal(self, number: int) -> bool:
        """False when that process is no longer there; a stranger with its PID is left alone."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def process_start(pid: int) -> float | None:
    """Ticks since boot on Linux, where a changed clock does not move them; the creation time elsewhere."""
    if (ticks := start_time(pid)) is not None:
        return ticks
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def this_process() -> Identity:
    return Identity(os.getpid(), process_start(os.getpid()) or 0.0)


def current_boot() -> str | None:
    return boot_id()


@dataclass(frozen=True)
class Credentials:
    server: str
    id: int
    name: str
    token: str


def write_private(path: Path, content: Any) -> None:
    """Durably, all or nothing, readable by its owner only from the first byte on."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(str(path.parent))


def set_aside(path: Path, *, problem: str, say: Say) -> Path:
    """Keeps a damaged file under another name, for a person to look at, and says so."""
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}-{secrets.token_hex(2)}")
    path.replace(aside)
    say(f"{path} is damaged ({problem}): set aside as {aside.name}, going on without it")
    return aside


def read_or_set_aside(path: Path, *, say: Say) -> dict[str, Any] | None:
    """None when the file is not there, or was damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        set_aside(path, problem=str(error), say=say)
        return None
    if not isinstance(content, dict):
        set_aside(path, problem=f"found {type(content).__name__}, expected an object", say=say)
        return None
    return content


class Home:
    """One daemon per home; everything in it belongs to one machine on one server."""

    def __init__(self, path: Path, *, say: Say) -> None:
        self.path, self.say = path, say
        self.instance = secrets.token_hex(16)
        self.lock: int | None = None

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.sqlite3"

    def take(self) -> None:
        """Locks the home until this process ends; says who holds it when somebody else does."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)
        self.runs.mkdir(exist_ok=True, mode=0o700)
        lock = os.open(self.path / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise AnotherDaemon(
                f"{self.path} is held by {self.describe_holder()}; give this one its own --home, or stop that one"
            ) from None
        self.lock = lock
        self.write_status({})

    def describe_holder(self) -> str:
        holder = self.holder()
        return f"the daemon with PID {holder.pid}" if holder else "another daemon"

    def holder(self) -> Identity | None:
        """The living daemon of this home, by its own record."""
        try:
            found = json.loads((self.path / "status.json").read_text(encoding="utf-8"))["process"]
            identity = Identity(int(found["pid"]), found["start"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return identity if identity.is_alive() else None

    def is_held(self) -> bool:
        try:
            lock = os.open(self.path / "daemon.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def write_status(self, status: dict[str, Any]) -> None:
        """For `daemon_status`; a hint, not the truth, so a full disk does not hurt."""
        path = self.path / "status.json"
        temporary = path.with_suffix(".tmp")
        content = {**status, "instance": self.instance, "process": asdict(this_process()), "boot": current_boot()}
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            self.say(f"cannot write {path}: {error.strerror}")

    def credentials(self, *, server: str) -> Credentials | None:
        path = self.path / "machine.json"
        found = read_or_set_aside(path, say=self.say)
        if found is None:
            return None
        try:
            credentials = Credentials(server=str(found["server"]), id=int(found["id"]), name=str(found["name"]), token=str(found["token"]))
        except (KeyError, TypeError, ValueError) as error:
            set_aside(path, problem=f"no usable {error}", say=self.say)
            return None
        return credentials if credentials.server == server else None

    def registration(self) -> str:
        """One id for all tries to register, kept until the token is stored: a try after a lost answer is known as such by the server."""
        path = self.path / "registration.json"
        found = read_or_set_aside(path, say=self.say) or {}
        if not isinstance(known := found.get("id"), str):
            known = secrets.token_hex(16)
            write_private(path, {"id": known})
        return known

    def save_credentials(self, credentials: Credentials) -> None:
        write_private(self.path / "machine.json", asdict(credentials))
        (self.path / "registration.json").unlink(missing_ok=True)

    def forget_credentials(self) -> None:
        (self.path / "machine.json").unlink(missing_ok=True)
