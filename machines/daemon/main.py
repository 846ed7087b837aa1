"""`agent_daemon`: from its words to a running daemon."""

import asyncio
import os
import platform
import re
import socket
import sys
import time
from argparse import ArgumentParser, Namespace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from chatroom.client.credentials import Place, find_place, normalise, require_token
from chatroom.client.errors import ClientError, usage_error
from chatroom.client.output import emit
from chatroom.client.server import Server
from machines.daemon.daemon import Daemon, Options
from machines.daemon.errors import DaemonError
from machines.daemon.harnesses import default_path
from machines.daemon.state import Credentials, Home

SLOTS = (1, 100)


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", help="what the machine is called in the room (this host's name)")
    parser.add_argument("--allow-dir", action="append", default=[], metavar="DIR", help="agents may work in DIR and below; may be repeated")
    parser.add_argument("--slots", type=int, default=5, metavar="N", help="task-mode runs at once (5)")
    parser.add_argument("--harnesses", metavar="FILE", help="what may be started here ($XDG_CONFIG_HOME/chatroom/harnesses.toml)")
    add_home(parser)


def add_home(parser: ArgumentParser) -> None:
    parser.add_argument("--home", metavar="DIR", help="the daemon's own files ($XDG_STATE_HOME/chatroom/daemon-SERVER)")


def run(args: Namespace) -> int:
    place = find_place(args)
    allowed = [allowed_directory(text) for text in args.allow_dir]
    if not SLOTS[0] <= args.slots <= SLOTS[1]:
        raise usage_error(f"--slots {args.slots}: expected {SLOTS[0]} to {SLOTS[1]}")
    options = Options(
        server=place.url,
        name=args.name or host_name(),
        version=own_version(),
        allowed=allowed,
        harnesses=Path(args.harnesses).expanduser() if args.harnesses else default_path(),
        slots=args.slots,
        abort_on_server_loss=on_server_loss() == "abort",
    )
    home = Home(find_home(args, place.url), say=say)
    try:
        return look_after(options, home, place, as_json=args.json)
    except DaemonError as error:
        raise ClientError(str(error), exit_code=error.exit_code, code=type(error).__name__.lower()) from None
    finally:
        home.release()


def look_after(options: Options, home: Home, place: Place, *, as_json: bool) -> int:
    home.take()
    credentials = home.credentials(server=options.server) or register(options, home, place)
    say(f"{credentials.name}: looking after agents for {options.server} (PID {os.getpid()}, home {home.path})")
    if not options.allowed:
        say("no --allow-dir: no agent can be started on this machine yet")
    ending = asyncio.run(supervise(options, home, credentials))
    emit({"machine": credentials.name, "exit_code": ending}, f"{credentials.name}: ended", as_json=as_json)
    return ending


async def supervise(options: Options, home: Home, credentials: Credentials) -> int:
    return (await Daemon(options, home, credentials, say=say).run()).exit_code


def register(options: Options, home: Home, place: Place) -> Credentials:
    """The first start trades a person's token, or the one from *Add a machine*, for the machine's own."""
    require_token(place)
    say(f"registering {options.name} with {options.server}")
    server = Server(place.url, place.token, patience=None)
    try:
        system = f"{platform.system()} {platform.machine()}"
        body = {"name": options.name, "platform": system, "registration": home.registration()}
        found = server.post("machines", body)
    finally:
        server.close()
    credentials = Credentials(server=options.server, id=int(found["id"]), name=str(found["name"]), token=str(found["token"]))
    home.save_credentials(credentials)
    return credentials


def allowed_directory(text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise usage_error(f"--allow-dir {text}: {'is not a directory' if path.exists() else 'there is no such directory'}")
    return path.resolve()


def find_home(args: Namespace, server: str) -> Path:
    if found := args.home or os.environ.get("CHATROOM_DAEMON_HOME"):
        return Path(found).expanduser().absolute()
    base = Path(os.environ.get("XDG_STATE_HOME") or "")
    place = re.sub(r"[^A-Za-z0-9.]+", "-", normalise(server).partition("://")[2])
    return (base if base.is_absolute() else Path.home() / ".local" / "state") / "chatroom" / f"daemon-{place}"


def host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().partition(".")[0])[:60].strip("-._") or "machine"


def own_version() -> str:
    try:
        return version("chatroom")
    except PackageNotFoundError:
        return "0"


def on_server_loss() -> str:
    found = os.environ.get("CHATROOM_ON_SERVER_LOSS", "continue")
    if found not in {"continue", "abort"}:
        raise usage_error(f"CHATROOM_ON_SERVER_LOSS={found}: expected continue or abort")
    return found


def say(text: str) -> None:
    """One line, with the time: the daemon's log is read after the fact."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
