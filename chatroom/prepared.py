"""The ORM's own statements, built once.

Django builds the SQL of a query anew for every call, which takes several times longer than running it. What the main path runs for every
message is built here on first use, from the same querysets, and kept.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Generic, TypeVar

from django.db import connection, models
from django.db.models.query import get_related_populators

from .rows import as_parameter, make
from .statements import fetch

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
            found = make(self.model, self.columns, row[self.own])
            for relation in self.relations:
                relate(relation, row, found)
            for name, position in self.annotations:
                setattr(found, name, row[position])
            yield found

    def plain_rows(self, **values: Any) -> Sequence[Any]:
        """As the database gives them: for a queryset of `values_list` whose columns need no conversion."""
        sql, parameters = self.statement
        given = {name: as_parameter(value) if isinstance(value, datetime) else value for name, value in values.items()}
        return fetch(sql, [given[value] if type(value) is Slot else value for value in parameters])

    def converted(self, rows: Sequence[Any]) -> Iterable[Any]:
        for row in rows:
            values = list(row)
            for position, convert in self.converters:
                values[position] = convert(values[position])
            yield values

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
    def converters(self) -> list[tuple[int, Callable[[Any], Any]]]:
        found = self.compiler.get_converters([column for column, *_ in self.compiler.select[: self.compiler.col_count]])
        return [(position, converter(*each)) for position, each in found.items()]

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
    def relations(self) -> Sequence[Any]:
        return get_related_populators(self.compiler.klass_info, self.compiler.select, "default")  # type: ignore[call-arg]  # the stubs know a later Django

    @cached_property
    def annotations(self) -> list[tuple[str, int]]:
        return list((self.compiler.annotation_col_map or {}).items())


def relate(relation: Any, row: Sequence[Any], owner: models.Model) -> None:
    """`RelatedPopulator.populate`, with rows of ours."""
    values = row[relation.cols_start : relation.cols_end]
    found = None if values[relation.pk_idx] is None else make(relation.model_cls, relation.init_list, values)
    relation.local_setter(owner, found)
    if found is not None:
        relation.remote_setter(found, owner)
        for inner in relation.related_populators:
            relate(inner, row, found)


def converter(converters: Sequence[Callable[..., Any]], expression: Any) -> Callable[[Any], Any]:
    """What the compiler would do to a column's value."""
    if connection.vendor == "sqlite" and isinstance(expression.output_field, models.DateTimeField):
        return from_sqlite_time

    def convert(value: Any) -> Any:
        for each in converters:
            value = each(value, expression, connection)
        return value

    return convert


def from_sqlite_time(value: datetime | None) -> datetime | None:
    """The driver makes a time of it already, by the type of its column."""
    return None if value is None else value.replace(tzinfo=UTC)
