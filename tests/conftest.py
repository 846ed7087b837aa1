"""The cast: alice owns, bob is a member, vera views, charlie is outside."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.test import TransactionTestCase
from django.utils.timezone import now

from chatroom.db import executors
from chatroom.models import Pulse, Room

from .factories import make_room, make_user

KEPT_TABLES = {"django_content_type", "auth_permission"}
IGNORED_BY_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def kill_one(pid: int, number: int, *, kill: Callable[[int, int], None] = os.kill) -> None:
    """A PID that is not known yet is 0 in our answers, and to the system that is everybody here, pytest first."""
    if pid <= 0:
        raise ValueError(f"a signal to PID {pid}: expected that of one process")
    kill(pid, number)


def pytest_configure() -> None:
    """Signals that nohup or a shell's background job left ignored: the programs started by tests would inherit that."""
    os.kill = kill_one  # type: ignore[assignment]
    for number in signal.valid_signals() - IGNORED_BY_PYTHON:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def empty_tables(_case: TransactionTestCase) -> None:
    """After a test that really commits. A TRUNCATE gives PostgreSQL a hundred new files to sync; what a test wrote is quickly deleted."""
    with transaction.atomic(), connection.cursor() as cursor:
        for table in connection.introspection.django_table_names(only_existing=True):
            if table not in KEPT_TABLES:
                cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")


@pytest.fixture(scope="session", autouse=True)
def quick_emptying() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransactionTestCase, "_fixture_teardown", empty_tables)
        yield


def close_connections() -> None:
    """Of every thread that kept one, so that the test's database can be emptied and dropped."""
    for executor in list(vars(executors).values()):
        together = threading.Barrier(executor._max_workers)
        for done in [executor.submit(close_together, together) for _ in range(executor._max_workers)]:
            done.result(10)


def close_together(together: threading.Barrier) -> None:
    together.wait(10)
    connections.close_all()


@pytest.fixture
def alice(db: None) -> User:
    return make_user("alice")


@pytest.fixture
def bob(db: None) -> User:
    return make_user("bob")


@pytest.fixture
def vera(db: None) -> User:
    return make_user("vera")


@pytest.fixture
def charlie(db: None) -> User:
    return make_user("charlie")


@pytest.fixture
def room(alice: User, bob: User, vera: User) -> Room:
    """A pair: builder, then reviewer; both custom agents."""
    return make_room(alice, member=bob, viewer=vera)


@pytest.fixture
def pulse(db: None) -> Pulse:
    """A web process has lived all along: no quiet time."""
    return Pulse.objects.create(pk=1, beat_at=now(), quiet_until=now())
