"""The life of `manage.py up`."""

import asyncio
import http.client
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from django.conf import settings

from chatroom.contributions import contributed
from chatroom.up import prepare
from chatroom.up.companion import Companion, Place
from chatroom.up.console import CannotStart, block, progress, say
from chatroom.up.home import Home
from chatroom.up.part import Part, managed
from chatroom.up.port import address_of, check_port, names_of
from chatroom.up.supervisor import Supervisor
from chatroom.up.valkey import valkey_part

MANAGE = settings.BASE_DIR / "manage.py"
VALKEY_LIMIT, READY_LIMIT, POLL_INTERVAL = 20.0, 60.0, 0.1


@dataclass(frozen=True)
class Options:
    host: str
    port: int
    demo: bool
    daemon: bool


def up(options: Options) -> int:
    """Runs until it is told to end. Returns the exit code."""
    # Before the parts run there is nothing to hang up.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    home = Home(settings.CHATROOM_HOME)
    try:
        home.create()
        lock = home.lock()
        with lock:
            check_port(options.host, options.port)
            return asyncio.run(run(options, home=home, prepared=prepare_home(options, home=home)))
    except CannotStart as error:
        sys.stdout.flush()
        print(f"chatroom: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130


@dataclass(frozen=True)
class Prepared:
    people: prepare.People
    companions: list[Companion]


def prepare_home(options: Options, *, home: Home) -> Prepared:
    """Everything that needs the database, in this process, before any part runs."""
    progress(f"home: {home.shown(home.path)}")
    if not settings.EMBEDDED_VALKEY:
        prepare.check_redis()
    prepare.prepare_database()
    prepare.prepare_static_files()
    people = prepare.prepare_people(demo=options.demo)
    url = address_of(options.host, options.port)
    place = Place(home=home.path, url=url, room=people.room, is_new=people.is_new_room)
    companions = [make(place) for make in contributed("companion")] if options.daemon else []
    prepare.let_go()
    home.write_server(url=url)
    return Prepared(people, companions)


async def run(options: Options, *, home: Home, prepared: Prepared) -> int:
    supervisor = Supervisor(home=home)
    supervisor.listen_to_signals()
    try:
        if settings.EMBEDDED_VALKEY:
            progress("starting: valkey")
            supervisor.add(valkey_part(socket=settings.VALKEY_SOCKET, home=home.path))
            await unless_ended(supervisor, wait_for_valkey())
        await start_parts(server_parts(options), supervisor)
        if not supervisor.ending.is_set():
            await unless_ended(supervisor, wait_until_ready(address_of(options.host, options.port)))
        commands = await start_companions(prepared.companions, supervisor)
        if not supervisor.ending.is_set():
            supervisor.serving = True
            block(welcome_lines(options, home=home, people=prepared.people, commands=commands))
        await supervisor.ending.wait()
        say("· ending")
    finally:
        await supervisor.stop()
    say("· ended")
    return 0


async def start_parts(parts: list[Part], supervisor: Supervisor) -> None:
    if parts and not supervisor.ending.is_set():
        progress(f"starting: {', '.join(part.name for part in parts)}")
        for part in parts:
            supervisor.add(part)


async def start_companions(companions: list[Companion], supervisor: Supervisor) -> list[str]:
    """Returns what they advise to try."""
    await start_parts([part for companion in companions for part in companion.parts()], supervisor)
    commands: list[str] = []
    for companion in companions:
        if not supervisor.ending.is_set():
            settling = asyncio.create_task(asyncio.to_thread(companion.settle, has_ended=supervisor.ending.is_set))
            await unless_ended(supervisor, settling)
            commands += settling.result() if settling.done() and not settling.cancelled() else []
    return commands


async def unless_ended(supervisor: Supervisor, waiting: asyncio.Task[Any]) -> None:
    """Waits, unless the person wants to end, or a part cannot start at all: then CannotStart is raised."""
    ended = asyncio.create_task(supervisor.ending.wait())
    try:
        awaited: set[asyncio.Future[Any]] = {waiting, ended, supervisor.failed_start}
        await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.failed_start.done():
            supervisor.failed_start.result()
        if waiting.done():
            waiting.result()
    finally:
        ended.cancel()
        waiting.cancel()


def server_parts(options: Options) -> list[Part]:
    environment = {"CHATROOM_HOME": str(settings.CHATROOM_HOME), "PYTHONUNBUFFERED": "1"}
    if not os.environ.get("CHATROOM_ALLOWED_HOSTS"):
        environment["CHATROOM_ALLOWED_HOSTS"] = ",".join(names_of(options.host))
    parts = [
        managed("web", "web", "--host", options.host, "--port", str(options.port), manage=MANAGE),
        managed("worker", "worker", manage=MANAGE),
        managed("sweep", "sweep", manage=MANAGE),
    ]
    for part in parts:
        part.environment = environment
    return parts


def wait_for_valkey() -> asyncio.Task[None]:
    def answers() -> bool:
        client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=1, socket_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    return asyncio.create_task(wait_for(answers, limit=VALKEY_LIMIT, what="the embedded Valkey did not answer"))


def wait_until_ready(url: str) -> asyncio.Task[None]:
    address = urlsplit(url)

    def ready() -> bool:
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=2)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return asyncio.create_task(wait_for(ready, limit=READY_LIMIT, what=f"{url}/readyz did not answer 200"))


async def wait_for(condition: Callable[[], bool], *, limit: float, what: str) -> None:
    until = time.monotonic() + limit
    while not await asyncio.to_thread(condition):
        if time.monotonic() > until:
            raise CannotStart(f"{what} within {limit:g} s: look into the files of {settings.CHATROOM_HOME / 'log'}")
        await asyncio.sleep(POLL_INTERVAL)


def welcome_lines(options: Options, *, home: Home, people: prepare.People, commands: list[str]) -> list[str]:
    url = settings.PUBLIC_URL.rstrip("/") or address_of(options.host, options.port)
    lines = ["Chatroom is ready. Open this link; it signs you in, once:", "", f"  {url}{people.link}", ""]
    if commands:
        lines += ["Press Send it in the demo room, or try:", ""]
    elif people.room:
        lines += ["Then try, each in a terminal of its own:", ""]
        commands = [
            f"wait_for_task {people.room} --role builder",
            f'send_message {people.room} --text "Say hello to the reviewer"',
            f"room_status {people.room}",
        ]
    if commands:
        lines += [*(f"  {how_to_call(home)} {command}" for command in commands), ""]
    return [*lines, "Ctrl-C ends everything."]


def how_to_call(home: Home) -> str:
    """What to type for `chatroom`, from this directory, so that it finds this server."""
    script = Path(sys.executable).with_name("chatroom")
    if (on_path := shutil.which("chatroom")) and Path(on_path).resolve() == script.resolve():
        found = "chatroom"
    else:
        found = home.shown(script) if script.exists() else f"{home.shown(Path(sys.executable))} manage.py"
    is_default = home.path == settings.BASE_DIR / "var"
    return found if is_default else f"CHATROOM_HOME={shlex.quote(str(home.path))} {found}"
