"""The server under test: `manage.py up` in a home of its own, as a user starts it."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

ROOT = Path(__file__).resolve().parent.parent
MANAGE = [sys.executable, str(ROOT / "manage.py")]
POSTGRES = os.environ.get("BENCH_DATABASE_URL") or os.environ.get("DATABASE_URL") or "postgres://postgres@127.0.0.1:5432/postgres"
REDIS = os.environ.get("BENCH_REDIS_URL") or os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/7"
START_LIMIT, END_LIMIT = 120, 15


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Database:
    """A PostgreSQL database that lives as long as the measurement."""

    name: str = field(default_factory=lambda: f"chatroom_bench_{uuid4().hex[:10]}")

    def __enter__(self) -> "Database":
        execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(self.name)))
        return self

    def __exit__(self, *_: object) -> None:
        execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(self.name)))

    @property
    def url(self) -> str:
        return urlsplit(POSTGRES)._replace(path=f"/{self.name}").geturl()


def execute(statement: sql.Composed) -> None:
    try:
        with psycopg.connect(POSTGRES.replace("postgres://", "postgresql://", 1), autocommit=True) as connection:
            connection.execute(statement)
    except psycopg.OperationalError as error:
        expected = "BENCH_DATABASE_URL: expected a server on which I may make databases"
        sys.exit(f"PostgreSQL is needed for the comparison and can't be used: {error}\n{expected}")


class Server:
    arguments: tuple[str, ...] = ("--no-demo", "--no-daemon")

    def __init__(self, stack: str) -> None:
        self.stack = stack
        self.folder = tempfile.TemporaryDirectory(prefix="chatroom-bench-")
        self.home = Path(self.folder.name) / "home"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = Database() if stack == "services" else None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHATROOM_", "DATABASE_URL", "REDIS_URL"))}
        kept |= {"CHATROOM_HOME": str(self.home), "PYTHONUNBUFFERED": "1", "CHATROOM_REDIS_PREFIX": f"bench-{self.home.parent.name}"}
        if self.database:
            kept |= {"DATABASE_URL": self.database.url, "REDIS_URL": REDIS}
        return kept

    def __enter__(self) -> Self:
        if self.database:
            self.database.__enter__()
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> None:
        log = Path(self.folder.name) / "up.log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*MANAGE, "up", *self.arguments, "--port", str(self.port)],
                env=self.environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        until = time.monotonic() + START_LIMIT
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the {self.stack} server did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.database:
            self.database.__exit__()
        self.folder.cleanup()

    @property
    def token(self) -> str:
        return (self.home / "owner.token").read_text().strip()

    @property
    def sign_in_link(self) -> str:
        found = re.search(rf"{self.url}/sign-in/\S+", (Path(self.folder.name) / "up.log").read_text())
        if found is None:
            raise RuntimeError("up showed no sign-in link")
        return found[0]

    @property
    def web_pid(self) -> int:
        return int((self.home / "run" / "web.pid").read_text())
