"""The daemon that `up` brings along, with the demo's agents in its harnesses: one command shows the whole."""

import json
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings

from chatroom.client.errors import NOT_ALLOWED, ClientError
from chatroom.client.server import Server, path
from chatroom.models import Room, Token, TokenKind
from chatroom.models.token import hash_secret
from chatroom.up.companion import Place
from chatroom.up.console import progress, report
from chatroom.up.part import Part
from machines.daemon.state import read_or_set_aside, write_private
from machines.demo.project import FIRST_MESSAGE
from machines.demo.repository import NoRepository, create_repository
from machines.models import Machine
from machines.offer import BUILDER, REVIEWER, is_demo

CONNECTED_WITHIN, LOOK_INTERVAL = 20.0, 0.1
HARNESSES = """\
# What this machine may run; the machine's daemon reads it again whenever it changes. See docs/harnesses.md.

[harnesses.{builder}]
command = [{python}, "-P", "-m", "machines.demo.builder"]
version = [{python}, "-P", "-m", "machines.demo.builder", "--version"]

[harnesses.{reviewer}]
command = [{python}, "-P", "-m", "machines.demo.reviewer"]
version = [{python}, "-P", "-m", "machines.demo.reviewer", "--version"]
"""


class LocalDaemon:
    """A `chatroom.up.companion.Companion`."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.folder, self.demo = place.home / "daemon", place.home / "demo"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.demo.mkdir(mode=0o700, exist_ok=True)
        write_harnesses(self.folder / "harnesses.toml")
        self.name = follow_server(self.folder / "machine.json", url=place.url) or free_name()
        self.is_revoked = Machine.objects.filter(name=self.name).exclude(revoked_at=None).exists()
        self.is_demo = bool(place.room) and is_demo(Room.objects.get(slug=place.room))
        if place.is_new:
            self.pending.write_text(place.room)
        if place.room and (self.is_demo or self.pending.exists()):
            self.prepare_demo()

    @property
    def why_revoked(self) -> str:
        return f"the machine {self.name} of this home was revoked; remove {self.folder} and start again to add it anew"

    @property
    def pending(self) -> Path:
        """Here until the demo's agents have moved in, once: what people change later is theirs."""
        return self.demo / "unsettled"

    @property
    def repository(self) -> Path:
        return self.demo / "shop"

    def prepare_demo(self) -> None:
        try:
            create_repository(self.repository)
            (self.demo / "first-message.md").write_text(FIRST_MESSAGE)
        except NoRepository as error:
            progress(f"no demo: {error}")
            self.pending.unlink(missing_ok=True)

    def parts(self) -> list[Part]:
        if self.is_revoked:
            progress(f"no daemon: {self.why_revoked}")
            return []
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "agent_daemon", "--server", self.place.url]
        options = ["--home", str(self.folder), "--name", self.name, "--allow-dir", str(self.demo)]
        # It says for itself who it is: with the owner's token of this home at the first start, with its machine's later on.
        environment = {"CHATROOM_HOME": str(self.place.home), "CHATROOM_TOKEN": "", "PYTHONUNBUFFERED": "1"}
        environment["CHATROOM_HARNESSES"] = str(self.folder / "harnesses.toml")
        # Also without `up` it ends its agents first.
        part = Part("daemon", [*command, *options], environment=environment, ends_first=True)
        part.orphan_signal, part.kill_signal = signal.SIGTERM, signal.SIGINT
        part.last_exit = (NOT_ALLOWED, self.why_revoked)
        return [part]

    def settle(self, *, has_ended: Callable[[], bool]) -> list[str]:
        if self.place.room and self.pending.exists() and not self.is_revoked:
            try:
                self.move_in(self.owners_server(), has_ended=has_ended)
            except (ClientError, OSError) as error:
                report(f"daemon: the demo could not be set up, it is tried again at the next start: {error}")
        return self.commands() if self.is_demo else []

    def owners_server(self) -> Server:
        return Server(self.place.url, (self.place.home / "owner.token").read_text().strip(), patience=2)

    def move_in(self, server: Server, *, has_ended: Callable[[], bool]) -> None:
        """Both roles of the demo room become remote agents on this machine, unless somebody was faster."""
        progress(f"demo: {self.place.room} gets its agents")
        self.wait_until_connected(server, has_ended=has_ended)
        agents = server.get(path("rooms", self.place.room))["agents"]
        if all(agent["kind"] == "custom" and agent["status"] == "offline" for agent in agents):
            for role, harness in (("builder", BUILDER), ("reviewer", REVIEWER)):
                where = {"kind": "remote", "machine": self.name, "harness": harness, "directory": str(self.repository), "mode": "loop"}
                server.put(path("rooms", self.place.room, "agents", role), where)
            self.is_demo = True
        self.pending.unlink()

    def wait_until_connected(self, server: Server, *, has_ended: Callable[[], bool]) -> None:
        until = time.monotonic() + CONNECTED_WITHIN
        while not has_ended():
            machines = {machine["name"]: machine["status"] for machine in server.get("machines")["machines"]}
            if machines.get(self.name) == "connected":
                return
            if time.monotonic() > until:
                break
            time.sleep(LOOK_INTERVAL)
        raise ClientError(f"the machine {self.name} did not connect; the daemon's output: {self.place.home / 'log' / 'daemon.log'}")

    def commands(self) -> list[str]:
        message = self.demo / "first-message.md"
        shown = message.relative_to(Path.cwd()) if message.is_relative_to(Path.cwd()) else message
        return [
            f"send_message {self.place.room} --file {shown} --wait",
            f"room_status {self.place.room} --watch",
            f"stop_agent {self.place.room} --role builder --wait",
        ]


def write_harnesses(file: Path) -> None:
    """Made once, for its owner to extend; only an untouched one follows a Python that moved."""
    wanted = HARNESSES.format(builder=BUILDER, reviewer=REVIEWER, python=json.dumps(sys.executable))

    def without_python(text: str) -> str:
        return re.sub(r'\["[^"]*"', "[", text)

    if not file.exists() or without_python(file.read_text(errors="replace")) == without_python(wanted):
        file.write_text(wanted)


def follow_server(file: Path, *, url: str) -> str:
    """The machine of this home, at the address where its server listens this time; "" when there is none, or it is of another database."""
    found = read_or_set_aside(file, say=report)
    if found is None:
        return ""
    token = Token.objects.filter(kind=TokenKind.MACHINE, hash=hash_secret(str(found.get("token"))))
    if not token.exists():
        file.unlink()
        return ""
    if found.get("server") != url:
        write_private(file, {**found, "server": url})
    return str(found["name"])


def free_name() -> str:
    """This host's name; with a number when another machine has it already."""
    host = re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname().partition(".")[0])[:50].strip("-._") or "local"
    taken = set(Machine.objects.filter(name__startswith=host).values_list("name", flat=True))
    return next(name for name in (host, *(f"{host}-{number}" for number in range(2, len(taken) + 3))) if name not in taken)
