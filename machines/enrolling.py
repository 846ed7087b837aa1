"""Add a machine: the one command to paste there."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from django.contrib.auth.models import User

from chatroom.errors import Invalid
from machines.fleet import Enrolment
from machines.models import Machine
from machines.services.registration import NAME, NameTaken, find_enrolment, issue_enrolment

DIRECTORY = re.compile(r"[^\0-\x1f\x7f]{1,300}")
HERE = {"localhost", "127.0.0.1", "::1"}


@dataclass
class Invitation:
    enrolment: Enrolment
    command: str
    later: str
    expires_at: datetime | None
    is_only_here: bool


def invite(owner: User, posted: Mapping[str, str], *, server_url: str) -> Invitation:
    """What can be known to fail on that machine is said here already."""
    name, directory = posted.get("name", "").strip(), posted.get("directory", "").strip()
    if name and not NAME.fullmatch(name):
        raise Invalid(f"machine name {name[:60]!r}: expected up to 60 letters, digits, '.', '_' or '-'")
    if name and Machine.objects.filter(name=name, revoked_at=None).exists():
        raise NameTaken(f"there is a machine {name} already: choose another name, or revoke the old one first")
    if directory and not DIRECTORY.fullmatch(directory):
        raise Invalid(f"directory {directory[:60]!r}: expected one path of up to 300 characters")
    secret = issue_enrolment(owner)
    token = find_enrolment(secret)
    return Invitation(
        enrolment=Enrolment(token.pk, token.expires_at),
        command=daemon_command(server_url, name=name, directory=directory, token=secret),
        later=daemon_command(server_url, name=name, directory=directory),
        expires_at=token.expires_at,
        is_only_here=urlsplit(server_url).hostname in HERE,
    )


def daemon_command(server_url: str, *, name: str, directory: str, token: str = "") -> str:
    """In a checkout: `make setup` installs what is missing, and does nothing when all is there."""
    words = ["chatroom", "agent_daemon", "--server", shlex.quote(server_url)]
    words += ["--token", shlex.quote(token)] if token else []
    words += ["--name", shlex.quote(name)] if name else []
    words += ["--allow-dir", quote_path(directory)] if directory else []
    before = ["make setup"] if token else []
    before += [f"mkdir -p {quote_path(directory)}"] if token and directory else []
    return " && ".join([*before, f".venv/bin/{' '.join(words)}"])


def quote_path(path: str) -> str:
    """~ stays what the shell of that machine makes of it."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") and len(path) > 2 else path if path == "~" else shlex.quote(path)
