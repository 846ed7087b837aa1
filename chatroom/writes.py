"""What an act writes without needing an answer. On PostgreSQL it travels together, as one statement: each one saved is a round trip saved.

Whoever reads sees what was written before: any other statement on the connection sends first what still waits. SQLite is no trip
away: there nothing waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from django.db import DatabaseError

from .statements import change, fetch

MOST_VALUES = 50  # psycopg prepares a statement with more of them anew each time


@dataclass(frozen=True)
class Write:
    """One INSERT or UPDATE of so many rows. `what`: the row that is meant, or the first of them."""

    table: str
    sql: str
    values: Sequence[Any]
    what: object
    rows: int = 1

    def run(self) -> None:
        self.check(change(self.sql, self.values))

    def check(self, rows: int) -> None:
        if rows != self.rows:
            raise DatabaseError(f"{self.what!r} was changed in {rows} rows, not in {self.rows}: it is gone")


@cache
def together(statements: tuple[str, ...]) -> str:
    parts = ", ".join(f"w{number} AS ({sql} RETURNING 1)" for number, sql in enumerate(statements))
    counts = ", ".join(f"(SELECT count(*) FROM w{number})" for number in range(len(statements)))
    return f"WITH {parts} SELECT {counts}"


@dataclass
class Writes:
    """Those of one unit, in their order; one for each table, because within a statement the order is the database's own."""

    waiting: list[Write] = field(default_factory=list)

    def add(self, write: Write) -> None:
        is_too_much = len(write.values) + sum(len(other.values) for other in self.waiting) > MOST_VALUES
        if is_too_much or any(other.table == write.table for other in self.waiting):
            self.flush()
        self.waiting.append(write)

    def flush(self) -> None:
        writes, self.waiting = self.waiting, []
        if len(writes) == 1:
            writes[0].run()
        elif writes:
            [counts] = fetch(together(tuple(write.sql for write in writes)), [value for write in writes for value in write.values])
            for write, count in zip(writes, counts, strict=True):
                write.check(count)

    def before_others(self, execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        """As one of Django's execute wrappers."""
        self.flush()
        return execute(sql, parameters, many, context)
