"""What has to be there before the parts start: the broker's answer, tables, static files, owner, first room."""

import hashlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import redis
from django.conf import settings
from django.contrib.staticfiles.finders import get_finders
from django.core.management import call_command
from django.db import DatabaseError, connection, connections
from django.db.migrations.executor import MigrationExecutor

from chatroom.up.console import CannotStart, progress


def prepare_database() -> None:
    """Applies what is missing; a second start finds nothing to do."""
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
        if missing:
            progress(f"database: applying {len(missing)} migrations")
            call_command("migrate", interactive=False, verbosity=0)
    except DatabaseError as error:
        where = without_password(database_address())
        raise CannotStart(
            f"the database {where} cannot be used: {str(error).strip()}\nCheck DATABASE_URL, and that the server runs."
        ) from None


def database_address() -> str:
    found = settings.DATABASES["default"]
    if connection.vendor == "sqlite":
        return f"sqlite:///{found['NAME']}"
    port = f":{found['PORT']}" if found["PORT"] else ""
    return f"postgres://{found['USER']}@{found['HOST']}{port}/{found['NAME']}"


def without_password(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.password else url


def check_redis() -> None:
    """A Redis of one's own has to answer before anything starts; the embedded one is started here."""
    client = redis.Redis.from_url(settings.REDIS_URL, socket_connect_timeout=3, socket_timeout=3)
    try:
        client.ping()
    except redis.RedisError as error:
        where = without_password(settings.REDIS_URL)
        raise CannotStart(f"Redis at {where} does not answer: {error}\nCheck REDIS_URL, or unset it to use the embedded Valkey.") from None
    finally:
        client.close()


def prepare_static_files() -> None:
    """Collects them when a source changed since the last time; looking takes a moment, collecting seconds."""
    stamp = Path(settings.STATIC_ROOT) / ".sources"
    wanted = fingerprint_static_sources()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    progress("static files: collecting and compressing")
    stamp.unlink(missing_ok=True)
    call_command("collectstatic", interactive=False, verbosity=0)
    stamp.write_text(wanted)


def fingerprint_static_sources() -> str:
    found = hashlib.sha256()
    for finder in get_finders():
        for path, storage in finder.list([]):
            source = Path(storage.path(path)).stat()
            found.update(f"{path} {source.st_size} {source.st_mtime_ns}\n".encode())
    return found.hexdigest()


class People(NamedTuple):
    link: str
    room: str
    is_new_room: bool


def prepare_people(*, demo: bool) -> People:
    """Owner and first room; returns the path of a one-time sign-in link, and the first room's slug ("" without a demo)."""
    from chatroom.models import Room
    from chatroom.services.setup import ensure_first_room, ensure_owner, issue_sign_in_link

    owner = ensure_owner()
    is_new = demo and not Room.objects.exists()
    room = ensure_first_room(owner).slug if demo else ""
    return People(issue_sign_in_link(owner), room, is_new)


def let_go() -> None:
    """`up` itself needs no database from here on."""
    connections.close_all()
