"""The ORM's own statements, built once.

Django builds the SQL of a query anew for every call, which takes several times longer than running it. What the main path runs for every
message is built here on first use, from the same querysets and fields, and kept.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache, cached_property
from typing import Any, Generic, TypeVar

from django.db import DatabaseError, connection, models
from django.db.models.query import get_related_populators
from django.db.models.signals import post_save
from django.dispatch import receiver

from .unit import write_in_time
from .writes import Write

M = TypeVar("M", bound=models.Model)
# A compiler counts its joins while it writes: two threads in it would leave one out, and the statement is kept.
BUILDING = threading.RLock()


class Slot(str):
    """Stands in a kept statement for a value that each call brings."""

    __slots__ = ()


class Prepared(Generic[M]):
    """A queryset whose values come later: `Prepared(lambda role: Agent.objects.filter(role=role))`, then `.first(role="builder")`.

    Values are integers, text, as the database takes them, and times.
    """

    def __init__(self, build: Callable[..., "models.QuerySet[Any, Any]"]) -> None:
        self.build = build

    def first(self, **values: Any) -> M | None:
        return next(self.rows(**values), None)

    def exists(self, **values: Any) -> bool:
        return bool(self.plain_rows(**values))

    def rows(self, **values: Any) -> Iterator[M]:
        for row in self.converted(self.plain_rows(**values)):
            found = self.model.from_db("default", self.columns, row[self.own])
            remember(found)
            for populator in self.populators:
                populator.populate(row, found)
            remember_related(found)
            for name, position in self.annotations:
                setattr(found, name, row[position])
            yield found

    def plain_rows(self, **values: Any) -> Sequence[Any]:
        """As the database gives them: for a queryset of `values_list` whose columns need no conversion."""
        sql, parameters = self.statement
        with connection.cursor() as cursor:
            cursor.execute(sql, [as_parameter(values[value]) if type(value) is Slot else value for value in parameters])
            return cursor.fetchall()

    def converted(self, rows: Sequence[Any]) -> Iterable[Any]:
        return self.compiler.apply_converters(rows, self.converters) if self.converters else rows

    @cached_property
    def compiler(self) -> Any:
        with BUILDING:
            if found := self.__dict__.get("compiler"):
                return found
            names = self.build.__code__.co_varnames[: self.build.__code__.co_argcount]
            return self.build(**{name: models.Value(Slot(name)) for name in names}).query.get_compiler(connection=connection)

    @cached_property
    def statement(self) -> tuple[str, tuple[Any, ...]]:
        with BUILDING:
            if found := self.__dict__.get("statement"):
                return tuple(found)
            sql, parameters = self.compiler.as_sql()
            return sql, tuple(parameters)

    @cached_property
    def converters(self) -> Any:
        return self.compiler.get_converters([column for column, *_ in self.compiler.select[: self.compiler.col_count]])

    @cached_property
    def model(self) -> type[M]:
        return self.compiler.klass_info["model"]

    @cached_property
    def own(self) -> slice:
        positions = self.compiler.klass_info["select_fields"]
        return slice(positions[0], positions[-1] + 1)

    @cached_property
    def columns(self) -> list[str]:
        return [column.target.attname for column, *_ in self.compiler.select[self.own]]

    @cached_property
    def populators(self) -> Sequence[Any]:
        return get_related_populators(self.compiler.klass_info, self.compiler.select, "default")  # type: ignore[call-arg]  # the stubs know a later Django

    @cached_property
    def annotations(self) -> list[tuple[str, int]]:
        return list((self.compiler.annotation_col_map or {}).items())


def as_parameter(value: Any) -> Any:
    return connection.ops.adapt_datetimefield_value(value) if isinstance(value, datetime) else value


def quoted(name: str | None) -> str:
    return connection.ops.quote_name(name or "")


def prepare_to_save(row: models.Model) -> None:
    """What a model does in `save` it does in `prepare_to_save`, for both ways to call."""
    if hook := getattr(row, "prepare_to_save", None):
        hook()
    elif type(row).save is not models.Model.save:
        raise TypeError(f"{type(row).__name__} has a save() of its own: expected prepare_to_save()")


@cache
def insert_statement(model: type[models.Model], *, rows: int, end: str) -> tuple[str, list[Any]]:
    fields = [field for field in model._meta.local_concrete_fields if not field.primary_key]
    row = f"({', '.join(['%s'] * len(fields))})"
    columns = ", ".join(quoted(field.column) for field in fields)
    table = quoted(model._meta.db_table)
    return f"INSERT INTO {table} ({columns}) VALUES {', '.join([row] * rows)}{end.format(key=quoted(model._meta.pk.column))}", fields


def insert(row: M) -> M:
    """A new row, with its key. Sends no signals."""
    found = insert_returning(row, end=" RETURNING {key}")
    if found is None:
        raise DatabaseError(f"{row!r} was not written, and the database does not say why")
    return found


def insert_new(row: M) -> M | None:
    """None if a constraint says that it is there already. Sends no signals."""
    return insert_returning(row, end=" ON CONFLICT DO NOTHING RETURNING {key}")


def insert_returning(row: M, *, end: str) -> M | None:
    sql, values = prepare_insert([row], end=end)
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        found = cursor.fetchone()
    if found is None:
        return None
    row.pk, row._state.adding, row._state.db = found[0], False, "default"
    remember(row)
    return row


def insert_in_time(*rows: models.Model) -> None:
    """New rows of one model whose keys nobody asks for: with the writes of the unit that need no answer. Sends no signals."""
    sql, values = prepare_insert(rows, end="")
    write_in_time(Write(rows[0]._meta.db_table, sql, values, what=rows[0], rows=len(rows)))


def prepare_insert(rows: Sequence[models.Model], *, end: str) -> tuple[str, list[Any]]:
    sql, fields = insert_statement(type(rows[0]), rows=len(rows), end=end)
    for row in rows:
        prepare_to_save(row)
    return sql, [field.get_db_prep_save(field.pre_save(row, True), connection) for row in rows for field in fields]


@receiver(post_save)
def forget(instance: models.Model, **_: Any) -> None:
    """Django's own save() came in between: what was read is outdated."""
    instance.__dict__.pop("_read", None)


def remember(row: models.Model) -> None:
    row._read = {field.attname: row.__dict__[field.attname] for field in row._meta.concrete_fields}  # type: ignore[attr-defined]


def remember_related(row: models.Model) -> None:
    for related in row._state.fields_cache.values():
        if related is not None:
            remember(related)
            remember_related(related)


@cache
def update_statement(model: type[models.Model], changed: tuple[str, ...]) -> tuple[str, list[Any]]:
    fields = [field for field in model._meta.local_concrete_fields if field.attname in changed]
    assignments = ", ".join(f"{quoted(field.column)} = %s" for field in fields)
    return f"UPDATE {quoted(model._meta.db_table)} SET {assignments} WHERE {quoted(model._meta.pk.column)} = %s", fields


def save_changes(row: models.Model) -> None:
    """The columns that changed since the row was read, or all of them if it was not read through here; sends no signals."""
    read: dict[str, Any] | None = getattr(row, "_read", None)
    if read is None:
        row.save()
        return
    prepare_to_save(row)
    changed = tuple(name for name, value in read.items() if row.__dict__[name] != value)
    if not changed:
        return
    sql, fields = update_statement(type(row), changed)
    values = [*(field.get_db_prep_save(field.pre_save(row, False), connection) for field in fields), row.pk]
    write_in_time(Write(row._meta.db_table, sql, values, what=row))
    remember(row)
