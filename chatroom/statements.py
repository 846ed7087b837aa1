"""One statement to the database, without what Django puts around it for those who listen.

Django's cursors and its registry of connections cost more than a small statement does. Where somebody listens (execute wrappers, query
logging) the statement goes through them; elsewhere it goes straight to the driver: the same SQL, the same values, the same errors.
"""

import threading
from asyncio import _get_running_loop
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.sqlite3.base import FORMAT_QMARK_REGEX

R = TypeVar("R")


class Here(threading.local):
    """This thread's connection, and what has to be written before anything else is said on it."""

    def __init__(self) -> None:
        self.own: Any = None
        self.before: list[Callable[[], None]] = []

    @property
    def database(self) -> Any:
        """Where an event loop runs, Django gives each of its tasks a connection of its own."""
        if _get_running_loop() is not None:
            return connections["default"]
        if self.own is None:
            self.own = connections["default"]
        return self.own


here = Here()


def fetch(sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
    return perform(sql, values, take_rows)


def change(sql: str, values: Sequence[Any]) -> int:
    """How many rows it met."""
    return perform(sql, values, take_count)


def take_rows(cursor: Any) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = cursor.fetchall()
    return found


def take_count(cursor: Any) -> int:
    return int(cursor.rowcount)


def perform(sql: str, values: Sequence[Any], take: Callable[[Any], R]) -> R:
    database = here.database
    for write in here.before:
        write()
    # One wrapper for each entry is the one that writes in time.
    if len(database.execute_wrappers) > len(here.before) or database.queries_logged:
        with database.cursor() as cursor:
            cursor.execute(sql, values)
            return take(cursor)
    database.validate_no_broken_transaction()
    database.ensure_connection()
    with database.wrap_database_errors:
        return take(database.connection.execute(with_question_marks(sql) if database.vendor == "sqlite" else sql, values))


@cache
def with_question_marks(sql: str) -> str:
    return FORMAT_QMARK_REGEX.sub("?", sql).replace("%%", "%")
