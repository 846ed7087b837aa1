"""One act, one transaction: what opens inside joins it, a room is locked once, what needs no answer is written together."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import transaction

from .statements import here
from .writes import Write, Writes


@dataclass
class Unit:
    depth: int
    rooms: dict[int, Any] = field(default_factory=dict)
    events: list[Any] = field(default_factory=list)
    last: list[Callable[[], None]] = field(default_factory=list)
    writes: Writes = field(default_factory=Writes)

    def finish(self) -> None:
        while self.last:
            self.last.pop(0)()
        self.writes.flush()


_open = threading.local()


def open_unit() -> Unit | None:
    """The unit that this code belongs to. None without one, and inside of a savepoint: that may be undone alone."""
    unit: Unit | None = getattr(_open, "unit", None)
    return unit if unit and unit.depth == len(here.database.savepoint_ids) else None


@contextmanager
def one_unit() -> Iterator[Unit]:
    """Joins the open unit, or begins one. An error ends the whole unit: nobody on the way may catch it and go on writing."""
    if unit := open_unit():
        yield unit
        return
    outer = getattr(_open, "unit", None)
    with transaction.atomic():
        unit = _open.unit = Unit(depth=len(here.database.savepoint_ids))
        try:
            if is_gathering():
                with writing_in_time(unit.writes):
                    yield unit
                    unit.finish()
            else:
                yield unit
                unit.finish()
        finally:
            _open.unit = outer


def is_gathering() -> bool:
    return bool(here.database.vendor == "postgresql")


@contextmanager
def writing_in_time(writes: Writes) -> Iterator[None]:
    with here.database.execute_wrapper(writes.before_others):
        here.before.append(writes.flush)
        try:
            yield
        finally:
            here.before.pop()


def write_in_time(write: Write) -> None:
    """Before anything else is read, at the latest with the unit's end."""
    unit = open_unit() if is_gathering() else None
    if unit:
        unit.writes.add(write)
    else:
        write.run()
