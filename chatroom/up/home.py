"""The files of one home: its lock, its address, the PIDs and the output of its parts."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO, TextIO

from chatroom.up.console import CannotStart

LOG_LIMIT = 5 * 1024 * 1024


class Home:
    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self) -> None:
        try:
            for folder in (self.path, self.path / "run", self.path / "log"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise CannotStart(
                f"CHATROOM_HOME={self.path} cannot be used: {error.strerror}: expected a directory that I may write to"
            ) from None

    def lock(self) -> TextIO:
        """Held while this process lives, whatever ends it: the kernel lets go of it. The caller keeps the file open."""
        file = (self.path / "run" / "up.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            with file:
                holder = file.read().strip() or "unknown"
            raise CannotStart(
                f"Chatroom is already running here: PID {holder} holds {self.path}{self._its_address()}.\n"
                f"End it with 'kill {holder}', or start a second one with a CHATROOM_HOME and a --port of its own."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        return file

    def _its_address(self) -> str:
        try:
            return f" and serves {json.loads(self.server_file.read_text())['url']}"
        except (OSError, ValueError, KeyError):
            return ""

    @property
    def server_file(self) -> Path:
        return self.path / "server.json"

    def write_server(self, *, url: str) -> None:
        """Where this home's server answers; the commands on this host find it here."""
        new = self.server_file.with_suffix(".new")
        new.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
        new.replace(self.server_file)

    def read_url(self) -> str:
        return str(json.loads(self.server_file.read_text())["url"])

    def read_owner_token(self) -> str:
        return (self.path / "owner.token").read_text().strip()

    def log_file(self, name: str) -> Path:
        return self.path / "log" / f"{name}.log"

    def open_log(self, name: str) -> BinaryIO:
        """For appending."""
        self.set_log_aside(name)
        return self.log_file(name).open("ab")

    def set_log_aside(self, name: str) -> None:
        """What grew large; also while its part runs: whoever appends goes on at the new beginning."""
        path = self.log_file(name)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)

    def pid_file(self, name: str) -> Path:
        return self.path / "run" / f"{name}.pid"

    def shown(self, path: Path) -> str:
        """As short as it can be typed from here."""
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
