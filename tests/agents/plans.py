"""What the database really did for each statement: which indexes it used, and how many rows it touched."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection


@dataclass
class Statement:
    sql: str
    params: Any
    indexes: set[str] = field(default_factory=set)
    scans: list[str] = field(default_factory=list)
    rows: int = 0

    def __str__(self) -> str:
        return f"{self.rows} rows, indexes {sorted(self.indexes)}, scans {self.scans}: {self.sql[:400]}"


def is_sqlite() -> bool:
    return connection.vendor == "sqlite"


@contextmanager
def recorded() -> Iterator[list[Statement]]:
    """The reading and changing statements that run inside, with the parameters they were really given."""
    found: list[Statement] = []

    def record(execute: Any, sql: str, params: Any, many: Any, context: Any) -> Any:
        if sql.startswith(("SELECT", "UPDATE", "DELETE")):
            found.append(Statement(sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(record):
        yield found


def explain(statement: Statement) -> Statement:
    with connection.cursor() as cursor:
        if is_sqlite():
            cursor.execute(f"EXPLAIN QUERY PLAN {statement.sql}", statement.params)
            read_sqlite_plan(statement, [row[3] for row in cursor.fetchall()])
        else:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.sql}", statement.params)
            plan = cursor.fetchone()[0]
            read_postgres_plan(statement, (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    return statement


def read_sqlite_plan(statement: Statement, lines: list[str]) -> None:
    for line in lines:
        words = line.split()
        if "INDEX" in words:
            statement.indexes.add(words[words.index("INDEX") + 1])
        if words[0] == "SCAN" and "INDEX" not in words and words[1] != "CONSTANT":
            statement.scans.append(words[1])


def read_postgres_plan(statement: Statement, node: dict[str, Any]) -> None:
    kind, table = node["Node Type"], node.get("Relation Name")
    if "Index Name" in node:
        statement.indexes.add(node["Index Name"])
    if table and kind not in {"ModifyTable", "LockRows"}:
        statement.rows += int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        if kind == "Seq Scan":
            statement.scans.append(table)
    for child in node.get("Plans", []):
        read_postgres_plan(statement, child)


@contextmanager
def counted_steps() -> Iterator[list[int]]:
    """SQLite's virtual machine counts its own steps, to the hundred; a row it looks at costs several."""
    steps = [0]

    def count() -> int:
        steps[0] += 100
        return 0

    connection.ensure_connection()
    connection.connection.set_progress_handler(count, 100)
    try:
        yield steps
    finally:
        connection.connection.set_progress_handler(None, 0)
