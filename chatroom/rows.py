"""Rows of the main path: made from what the database gave, written with only what changed; without the signals and checks of `Model`.

A model's columns never change while the program runs, so what depends on them alone is looked up once.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from typing import Any, TypeVar

from django.db import DatabaseError, models
from django.db.models.base import ModelState
from django.db.models.fields import NOT_PROVIDED
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils.timezone import now

from .statements import fetch, here
from .unit import write_in_time
from .writes import Write

M = TypeVar("M", bound=models.Model)
Convert = Callable[[Any], Any]
# Their values are stored as they are.
PLAIN = (models.CharField, models.TextField, models.IntegerField, models.BooleanField, models.ForeignKey)


def make(model: type[M], names: Sequence[str], values: Sequence[Any]) -> M:
    """A stored row, as `Model.from_db` makes it; columns that are not named are read when they are asked for."""
    row = model.__new__(model)
    read = dict(zip(names, values, strict=True))
    state = ModelState()
    state.adding, state.db = False, "default"
    row.__dict__.update(read, _state=state, _read=read)
    return row


def new(model: type[M], **values: Any) -> M:
    """As the model itself makes it, from the values of its columns (`room_id`, not `room`)."""
    row = model.__new__(model)
    row._state = ModelState()
    fields = row.__dict__
    for name, default in defaults_of(model):
        fields[name] = values.pop(name) if name in values else default()
    if values:
        raise TypeError(f"{model.__name__} has no column {', '.join(values)}: expected {', '.join(names_of(model))}")
    return row


@cache
def defaults_of(model: type[models.Model]) -> list[tuple[str, Callable[[], Any]]]:
    return [(field.attname, default_of(field)) for field in model._meta.concrete_fields]


def default_of(field: Any) -> Callable[[], Any]:
    default = field.get_default if field.default is NOT_PROVIDED or not callable(field.default) else field.default
    assert callable(default)
    return default


@cache
def names_of(model: type[models.Model]) -> tuple[str, ...]:
    return tuple(field.attname for field in model._meta.concrete_fields)


@receiver(post_save)
def forget(instance: models.Model, **_: Any) -> None:
    """Django's own save() came in between: what was read is outdated."""
    instance.__dict__.pop("_read", None)


def remember(row: models.Model) -> None:
    row._read = {name: row.__dict__[name] for name in names_of(type(row))}  # type: ignore[attr-defined]


def as_parameter(value: datetime | None) -> Any:
    """What Django's `adapt_datetimefield_value` gives, by a shorter way where it is the usual case."""
    if value is not None and value.tzinfo is UTC and here.database.vendor == "sqlite":
        return str(value.replace(tzinfo=None))
    return here.database.ops.adapt_datetimefield_value(value)


def as_json(encoder: Any, value: Any) -> Any:
    return None if value is None else here.database.ops.adapt_json_value(value, encoder)


@cache
def converter(field: Any) -> Convert | None:
    """How a value of this field is stored; None if as it is."""
    if isinstance(field, models.DateTimeField):
        return as_parameter
    if isinstance(field, models.JSONField):
        return partial(as_json, field.encoder)
    if isinstance(field, PLAIN) and type(field).get_db_prep_save in {base.get_db_prep_save for base in PLAIN}:
        return None
    return partial(converted, field)


def converted(field: Any, value: Any) -> Any:
    return field.get_db_prep_save(value, here.database)


def quoted(name: str | None) -> str:
    return str(here.database.ops.quote_name(name or ""))


@cache
def hook_of(model: type[models.Model]) -> Callable[[Any], None] | None:
    """What a model does in `save` it does in `prepare_to_save`, for both ways to call."""
    hook: Callable[[Any], None] | None = getattr(model, "prepare_to_save", None)
    if hook is None and model.save is not models.Model.save:
        raise TypeError(f"{model.__name__} has a save() of its own: expected prepare_to_save()")
    return hook


@cache
def insert_columns(model: type[models.Model]) -> list[tuple[str, Convert | None]]:
    return [(field.attname, converter(field)) for field in model._meta.local_concrete_fields if not field.primary_key]


@cache
def times_of_making(model: type[models.Model]) -> list[str]:
    return [field.attname for field in model._meta.local_concrete_fields if getattr(field, "auto_now_add", False)]


@cache
def insert_statement(model: type[models.Model], *, rows: int, end: str) -> str:
    fields = [field for field in model._meta.local_concrete_fields if not field.primary_key]
    row = f"({', '.join(['%s'] * len(fields))})"
    columns = ", ".join(quoted(field.column) for field in fields)
    table = quoted(model._meta.db_table)
    return f"INSERT INTO {table} ({columns}) VALUES {', '.join([row] * rows)}{end.format(key=quoted(model._meta.pk.column))}"


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
    found = fetch(insert_statement(type(row), rows=1, end=end), values_to_insert([row]))
    if not found:
        return None
    row.pk, row._state.adding, row._state.db = found[0][0], False, "default"
    remember(row)
    return row


def insert_in_time(*rows: models.Model) -> None:
    """New rows of one model whose keys nobody asks for: with the writes of the unit that need no answer. Sends no signals."""
    model = type(rows[0])
    sql = insert_statement(model, rows=len(rows), end="")
    write_in_time(Write(model._meta.db_table, sql, values_to_insert(rows), what=rows[0], rows=len(rows)))


def values_to_insert(rows: Sequence[models.Model]) -> list[Any]:
    model = type(rows[0])
    hook, columns, time = hook_of(model), insert_columns(model), now()
    values = []
    for row in rows:
        fields = row.__dict__
        for name in times_of_making(model):
            fields[name] = time
        if hook is not None:
            hook(row)
        values += [fields[name] if convert is None else convert(fields[name]) for name, convert in columns]
    return values


@cache
def update_statement(model: type[models.Model], changed: tuple[str, ...]) -> tuple[str, list[Convert | None]]:
    fields = [field for field in model._meta.local_concrete_fields if field.attname in changed]
    assignments = ", ".join(f"{quoted(field.column)} = %s" for field in fields)
    sql = f"UPDATE {quoted(model._meta.db_table)} SET {assignments} WHERE {quoted(model._meta.pk.column)} = %s"
    return sql, [converter(field) for field in fields]


def save_changes(row: models.Model) -> None:
    """The columns that changed since the row was read, or all of them if it was not read through here; sends no signals."""
    model, fields = type(row), row.__dict__
    read: dict[str, Any] | None = fields.get("_read")
    if read is None:
        row.save()
        return
    if hook := hook_of(model):
        hook(row)
    changed = tuple(name for name in names_of(model) if name in read and fields[name] != read[name])
    if not changed:
        return
    sql, converters = update_statement(model, changed)
    values = [fields[name] if convert is None else convert(fields[name]) for name, convert in zip(changed, converters, strict=True)]
    write_in_time(Write(model._meta.db_table, sql, [*values, row.pk], what=row))
    row._read = {**read, **{name: fields[name] for name in changed}}  # type: ignore[attr-defined]
