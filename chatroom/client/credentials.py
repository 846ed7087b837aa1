"""Which server, and which token for it: the order in which they are looked for is a matter of security."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chatroom.client.errors import NOT_ALLOWED, ClientError, usage_error

if TYPE_CHECKING:
    from argparse import Namespace

    from chatroom.client.server import Server

DEFAULT_SERVER = "http://127.0.0.1:8000"


class Place(NamedTuple):
    url: str
    token: str
    source: str  # "given", "file" or "owner"; "" without a token


def find_place(args: Namespace) -> Place:
    given = args.token or os.environ.get("CHATROOM_TOKEN") or ""
    url = args.server or os.environ.get("CHATROOM_SERVER") or ""
    if url and given:
        return Place(normalise(url), given, "given")
    # A process that was given a token acts for that token alone: it never sees what lies in the server's home.
    local = {} if os.environ.get("CHATROOM_TOKEN") else read_local_server()
    stored = read_credentials()
    url = normalise(url or local.get("url") or stored.get("default") or DEFAULT_SERVER)
    if given:
        return Place(url, given, "given")
    if token := stored["servers"].get(url, {}).get("token"):
        return Place(url, token, "file")
    if local and normalise(local["url"]) == url and (token := read_owner_token()):
        return Place(url, token, "owner")
    return Place(url, "", "")


def connect(args: Namespace, *, patience: float | None = -1) -> Server:
    """The server to talk to, signed in. `patience` None: an outage is waited for for ever."""
    from chatroom.client.server import Server, default_patience

    place = find_place(args)
    require_token(place)
    return Server(place.url, place.token, patience=default_patience() if patience == -1 else patience)


def require_token(place: Place) -> None:
    from chatroom.client.program import command

    if not place.token:
        line = command("login", server=place.url)
        raise ClientError(f"not signed in to {place.url}: {line}", exit_code=NOT_ALLOWED, code="not_signed_in")
    if not place.token.isascii() or not place.token.isprintable() or " " in place.token:
        raise usage_error("the token has characters that no token has: expected letters, digits and punctuation in one line")


def normalise(url: str) -> str:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url.strip())
        port = parts.port  # raises for a port that is no number
    except ValueError as error:
        raise usage_error(f"--server {url}: {error}; expected for example {DEFAULT_SERVER}") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise usage_error(f"--server {url}: expected http://HOST[:PORT] or https://HOST[:PORT]")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"


# --- the server's own host


def home() -> Path:
    found = os.environ.get("CHATROOM_HOME")
    return Path(found) if found else Path(__file__).resolve().parent.parent.parent / "var"


def read_local_server() -> dict[str, Any]:
    """Where the server of this host listens; empty when there is none, or we may not look."""
    try:
        found = json.loads((home() / "server.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("url"), str) else {}


def read_owner_token() -> str:
    try:
        return (home() / "owner.token").read_text().strip()
    except (OSError, ValueError):
        return ""


# --- what `login` stored


def credentials_file() -> Path:
    # An empty or relative XDG_CONFIG_HOME counts as unset, as its specification says.
    found = Path(os.environ.get("XDG_CONFIG_HOME") or "")
    return (found if found.is_absolute() else Path.home() / ".config") / "chatroom" / "credentials.json"


def read_credentials() -> dict[str, Any]:
    path = credentials_file()
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        found = {}
    except (OSError, ValueError) as error:
        raise ClientError(f"{path}: {error}; expected the file that `login` writes. Remove it and sign in again") from None
    servers = found.get("servers") if isinstance(found, dict) else None
    return {"default": found.get("default") if servers else None, "servers": servers if isinstance(servers, dict) else {}}


def store_token(url: str, *, token: str, name: str) -> Path:
    stored = read_credentials()
    stored["servers"][url] = {"token": token, "name": name}
    return write_credentials({"default": url, "servers": stored["servers"]})


def forget_token(url: str) -> None:
    stored = read_credentials()
    stored["servers"].pop(url, None)
    default = stored["default"] if stored["default"] in stored["servers"] else next(iter(stored["servers"]), None)
    write_credentials({"default": default, "servers": stored["servers"]})


def write_credentials(stored: dict[str, Any]) -> Path:
    path = credentials_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    # Made 0600 from its first moment; put in place whole, so that a reader never meets half of it.
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(stored, file, indent=1)
    return beside.replace(path)
