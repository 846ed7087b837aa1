"""Real servers for the tests: each with its own home, port, and, on services, its own database and Redis prefix."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.processes.broker import Broker, Proxy
from tests.processes.program import KEPT, MANAGE, Program

MakeProgram = Callable[..., Program]
# A file goes to one worker as a whole: one that takes minutes and begins last leaves the others without work.
LONGEST = ("test_daemons.py", "test_scripts.py", "test_kills.py", "test_chaos.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.processes)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def plain_environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**environment, "DJANGO_SETTINGS_MODULE": "chatroom.settings", "PYTHONUNBUFFERED": "1"}


class Stack:
    """Where the programs of this session keep their data: SQLite and the embedded Valkey, or fresh databases on the services."""

    def __init__(self) -> None:
        self.database_url, self.redis_url = os.environ.get("DATABASE_URL", ""), os.environ.get("REDIS_URL", "")
        self.databases: list[str] = []
        self.template = "template0"
        self.proxies: list[Proxy] = []

    def environment(self) -> dict[str, str]:
        """For one program: what it needs beside its home."""
        environment = {**plain_environment(), "CHATROOM_REDIS_PREFIX": f"chatroom-test-{uuid.uuid4().hex[:12]}"}
        if self.database_url:
            environment["DATABASE_URL"] = self.create_database()
        if self.redis_url:
            environment["REDIS_URL"] = self.redis_url
        return environment

    def program(self, home: Path, *, settings: dict[str, str]) -> Program:
        """Its Redis is reached through a proxy, so that it can fail without failing for others."""
        environment = self.environment()
        proxy = None
        if self.redis_url:
            proxy = Proxy(self.redis_url)
            proxy.start()
            self.proxies.append(proxy)
            environment["REDIS_URL"] = proxy.url
        broker = Broker(home, proxy=proxy, prefix=environment["CHATROOM_REDIS_PREFIX"])
        return Program(home, environment=environment, settings=settings, broker=broker)

    def create_database(self) -> str:
        name = f"chatroom_p_{uuid.uuid4().hex[:12]}"
        self.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(self.template)))
        self.databases.append(name)
        return urlsplit(self.database_url)._replace(path=f"/{name}").geturl()

    def execute(self, statement: sql.Composed) -> None:
        address = urlsplit(self.database_url)._replace(scheme="postgresql", path="/postgres").geturl()
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(statement)

    def remove(self) -> None:
        for proxy in self.proxies:
            proxy.ended = True
            proxy.join(5)
        for name in self.databases:
            self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    stack = Stack()
    yield stack
    stack.remove()


@pytest.fixture(scope="session")
def prepared_home(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and static files, made once: every program of the session starts from a copy, as a later start of a user does."""
    home = tmp_path_factory.mktemp("prepared") / "home"
    home.mkdir(mode=0o700)
    environment = {**stack.environment(), "CHATROOM_HOME": str(home)}
    subprocess.run([*MANAGE, "migrate", "--verbosity", "0"], env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    code = "from chatroom.up.prepare import prepare_static_files; prepare_static_files()"
    subprocess.run([*MANAGE, "shell", "-c", code], env=environment, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    stack.template = stack.databases[-1] if stack.databases else stack.template
    # Two servers share neither their keys nor the names of their cookies.
    (home / "secret.key").unlink()
    return home


@pytest.fixture(scope="session")
def make_program(stack: Stack, prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeProgram]:
    """A server with its own home, not yet started. `fresh=True`: from nothing, as on a user's first start."""
    made: list[Program] = []

    def make(*, fresh: bool = False, home: Path | None = None, **settings: str) -> Program:
        home = home or tmp_path_factory.mktemp("server") / "home"
        if not fresh:
            shutil.copytree(prepared_home, home)
        program = stack.program(home, settings=settings)
        made.append(program)
        return program

    yield make
    for program in made:
        program.stop()


@pytest.fixture(scope="module")
def server(make_program: MakeProgram) -> Iterator[Program]:
    """One running server for the tests of a module, with its first room, `demo`."""
    program = make_program()
    program.start()
    yield program
    program.stop()
