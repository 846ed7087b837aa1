"""Database work off the event loop, on threads that keep their connections.

Django's own bridges open a thread, and so a connection, for each request, or put every socket of the process on one thread.
Here pages, work and renewals each have threads of their own, so that none of them waits behind another.
"""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.db import InterfaceError, OperationalError, connection
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

from .statements import here

P = ParamSpec("P")
R = TypeVar("R")
TRUSTED_FOR = 5.0
WORTH_SHARING = 10


def is_sqlite() -> bool:
    return settings.DATABASES["default"]["ENGINE"].endswith("sqlite3")


class Executors:
    """Made on first use, in the process that uses them. SQLite serialises writers anyway: more threads only slow its slowest calls down."""

    @cached_property
    def work(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1 if is_sqlite() else settings.DATABASE_THREADS, thread_name_prefix="work")

    @cached_property
    def read(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1 if is_sqlite() else 2, thread_name_prefix="read")

    @cached_property
    def liveness(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="liveness")


executors = Executors()


kept = threading.local()


def look_after_connection() -> None:
    """Replaces this thread's connection if it broke in an earlier call, or, as far as a look after a pause can tell, since then."""
    database, time = here.database, monotonic()
    database.close_if_unusable_or_obsolete()
    if database.connection is not None and time - getattr(kept, "used_at", time) > TRUSTED_FOR and not database.is_usable():
        database.close()
    kept.used_at = time


def on_kept_connection(call: Callable[[], R]) -> R:
    look_after_connection()
    return call()


def repeatably(call: Callable[[], R]) -> Callable[[], R]:
    """For what may be done twice: a connection that died since its last use costs its first user a second try, not an error."""

    def call_again() -> R:
        try:
            return call()
        except (OperationalError, InterfaceError):
            if connection.in_atomic_block or connection.is_usable():
                raise
            connection.close()
            return call()

    return call_again


async def run_in(executor: ThreadPoolExecutor, call: Callable[[], R]) -> R:
    return await asyncio.get_running_loop().run_in_executor(executor, contextvars.copy_context().run, on_kept_connection, call)


async def in_db(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Acts: what writes, and what a caller waits for."""
    return await run_in(executors.work, partial(function, *args, **kwargs))


async def in_read(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Feeds and re-checks: reads that may be slow and must not delay an act."""
    return await run_in(executors.read, repeatably(partial(function, *args, **kwargs)))


async def in_liveness(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Renewals and the pulse; nothing else may ever wait here."""
    return await run_in(executors.liveness, repeatably(partial(function, *args, **kwargs)))


def side_by_side(calls: list[Callable[[], R]]) -> list[R]:
    """Acts that don't need each other, on a few threads with connections of their own; in turn where that gains nothing, or can't be.

    For processes without an event loop. Raises the first error; what has not begun by then is left.
    """
    if is_sqlite() or len(calls) < WORTH_SHARING or connection.in_atomic_block:
        return [call() for call in calls]
    return list(executors.work.map(on_kept_connection, calls))


Application = Callable[..., Awaitable[None]]


def kept_thread(prefix: str) -> ThreadSensitiveContext:
    """asgiref runs a request's sync code on the thread of its ThreadSensitiveContext, and Django's handler keeps a context it finds."""
    context = ThreadSensitiveContext()
    SyncToAsync.context_to_thread_executor[context] = ThreadPoolExecutor(1, thread_name_prefix=prefix)
    return context


class SharedThread:
    """An ASGI wrapper for async views: the little sync work around them shares one thread."""

    def __init__(self, application: Application) -> None:
        self.application, self.context = application, kept_thread("api")

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        SyncToAsync.thread_sensitive_context.set(self.context)
        await self.application(scope, receive, send)


class PageThreads:
    """An ASGI wrapper for sync views: each request borrows one of a few threads, whose connections outlive it."""

    def __init__(self, application: Application, *, threads: int) -> None:
        self.application, self.threads = application, threads
        self.free: asyncio.LifoQueue[ThreadSensitiveContext] | None = None

    def open(self) -> asyncio.LifoQueue[ThreadSensitiveContext]:
        free: asyncio.LifoQueue[ThreadSensitiveContext] = asyncio.LifoQueue()
        for _ in range(self.threads):
            free.put_nowait(kept_thread("page"))
        return free

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if self.free is None:
            self.free = self.open()
        context = await self.free.get()
        token = SyncToAsync.thread_sensitive_context.set(context)
        try:
            await self.application(scope, receive, send)
        finally:
            SyncToAsync.thread_sensitive_context.reset(token)
            self.free.put_nowait(context)


@sync_and_async_middleware
def KeptConnectionsMiddleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:  # noqa: N802
    """Replaces a page thread's broken connection; the signal handler that would do so is switched off in the web process (see asgi.py)."""
    if iscoroutinefunction(get_response):

        async def passing(request: HttpRequest) -> HttpResponse:
            return await get_response(request)

        return markcoroutinefunction(passing)

    def middleware(request: HttpRequest) -> HttpResponse:
        if not connection.in_atomic_block:
            look_after_connection()
        return get_response(request)

    return middleware


def checkpoint() -> int:
    """Moves what SQLite's log holds into the database file, without stopping anybody. Returns how many pages that were."""
    if not is_sqlite():
        return 0
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
        _, pages, _ = cursor.fetchone()
    return int(pages)
