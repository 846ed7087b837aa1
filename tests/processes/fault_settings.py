"""The program's own settings, and a trap: the web process kills itself after statement n of a handoff, as a power cut would.

`CHATROOM_TEST_DIE_AFTER`: n, or `commit`, or `never`. Reaching the end is written, with the number of statements, to `CHATROOM_TEST_COUNT`.
"""

import os
import signal
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware

from chatroom.settings import *  # noqa: F403
from chatroom.settings import API_MIDDLEWARE

DIE_AFTER = os.environ["CHATROOM_TEST_DIE_AFTER"]
# The statements so far of the request this context belongs to; nothing outside of a handoff.
statements: ContextVar[list[str] | None] = ContextVar("statements", default=None)

API_MIDDLEWARE = [*API_MIDDLEWARE, f"{__name__}.trap_handoffs"]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
    result = execute(sql, params, many, context)
    done = statements.get()
    if done is not None:
        done.append(sql)
        if str(len(done)) == DIE_AFTER:
            die()
    return result


def watch(connection: Any, **_: Any) -> None:
    connection.execute_wrappers.append(count)


connection_created.connect(watch, weak=False)


@async_only_middleware
def trap_handoffs(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
    async def middleware(request: HttpRequest) -> HttpResponse:
        if not request.path.endswith("/handoff"):
            return await get_response(request)
        done: list[str] = []
        statements.set(done)
        response = await get_response(request)
        Path(os.environ["CHATROOM_TEST_COUNT"]).write_text(f"{len(done)} {response.status_code}")  # noqa: ASYNC240  (it dies next)
        if DIE_AFTER == "commit":
            die()
        return response

    return middleware
