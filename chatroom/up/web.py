"""One web process: Daphne in this process, with an end that lets its clients go in order."""

import asyncio
import contextlib
import gc
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import daphne.http_protocol
from daphne.endpoints import build_endpoint_description_strings
from daphne.http_protocol import WebRequest
from daphne.server import HTTPFactory, Server  # installs Twisted's reactor: before anything else of Twisted
from daphne.ws_protocol import WebSocketProtocol
from twisted.internet import reactor

from chatroom import ending
from chatroom.up.limits import allow_many_sockets
from chatroom.up.parent import end_within

logger = logging.getLogger("chatroom.web")
# Twisted would format a line for a log that goes nowhere.
HTTPFactory.log = lambda self, request: None
# Consumers may say a last word, then sockets are closed, then requests in flight get a moment, then everything ends.
GOODBYE_LIMIT, CLOSE_LIMIT, HARD_LIMIT = 0.2, 2.0, 4.5
SERVICE_RESTART = 1012
# When all come back at once after an outage, each waits for its turn; the clients wait no longer than this either.
HANDSHAKE_LIMIT = 20
LONGEST_MESSAGE = 1024 * 1024  # to a socket; whoever sends more is cut off
LONGEST_BODY = 4 * 1024 * 1024  # of a request, more than any is allowed to have
LOOK_INTERVAL = 0.05


class BoundedRequest(WebRequest):
    """Keeps no more of a body than it takes to refuse it: the rest is thrown away as it comes, whoever sends it."""

    # Django reads forms itself, and finding out whether a body is one takes Twisted longer than all the rest of its work.
    # A property, because each request sets its own.
    _parsePOSTFormSubmission = property(lambda self: False, lambda self, value: None)  # noqa: N815  (Twisted's name)
    kept = 0

    def handleContentChunk(self, data: bytes) -> None:  # noqa: N802  (Twisted's name)
        part = data[: LONGEST_BODY - self.kept]
        self.kept += len(part)
        super().handleContentChunk(part)


daphne.http_protocol.WebRequest = BoundedRequest


class GracefulServer(Server):
    """Stops listening, tells its sockets, lets running requests finish, and only then stops."""

    listen_failed = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ports: list[Any] = []
        # Not known to Daphne's base class before its run().
        self.connections: dict[Any, dict[str, Any]] = {}

    def listen_success(self, port: Any) -> None:
        self.ports.append(port)
        super().listen_success(port)

    def listen_error(self, failure: Any) -> None:
        self.listen_failed = True
        super().listen_error(failure)

    def begin_ending(self) -> None:
        if ending.ending:
            return
        end_within(HARD_LIMIT)
        for port in self.ports:
            port.stopListening()
        ending.begin()
        self.ending_task = asyncio.get_running_loop().create_task(self._end())

    async def _end(self) -> None:
        await self._until_idle(limit=GOODBYE_LIMIT)
        for protocol in list(self.connections):
            if isinstance(protocol, WebSocketProtocol) and protocol.state == protocol.STATE_OPEN:
                protocol.serverClose(code=SERVICE_RESTART)
        await self._until_idle(limit=CLOSE_LIMIT)
        self.stop()

    async def _until_idle(self, *, limit: float) -> None:
        until = time.monotonic() + limit
        while time.monotonic() < until and any(self._is_busy(details) for details in list(self.connections.values())):
            await asyncio.sleep(LOOK_INTERVAL)

    def _is_busy(self, details: dict[str, Any]) -> bool:
        application = details.get("application_instance")
        return application is not None and not application.done()

    def kill_all_applications(self) -> Any:
        # Daphne's own trips over a kept-alive connection whose request was answered.
        for protocol, details in list(self.connections.items()):
            if "application_instance" not in details:
                del self.connections[protocol]
        return super().kill_all_applications()


Background = Callable[[], Awaitable[None]]


async def keep_doing(background: Background) -> None:
    """What a web process does by itself must not stop for one surprise."""
    while True:
        try:
            await background()
        except Exception:
            logger.exception(f"{getattr(background, '__name__', background)} failed; it goes on in a second")
        await asyncio.sleep(1)


def tune_interpreter() -> None:
    """For short waits instead of throughput: the event loop shares one lock with the database threads, and the collector stops them all."""
    sys.setswitchinterval(0.001)
    # What the start made stays for ever, so that no collection walks through it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def serve(
    application: Any, *, host: str, port: int, ping_interval: float, ping_timeout: float, background: Sequence[Background] = ()
) -> bool:
    """Serves until SIGTERM or SIGINT, with `background` running on the same loop. Returns False when it could not listen."""
    endpoints = [f"{endpoint}:backlog=1024" for endpoint in build_endpoint_description_strings(host=host, port=port)]
    server = GracefulServer(
        application=application,
        endpoints=endpoints,
        signal_handlers=False,
        ping_interval=ping_interval,
        ping_timeout=ping_timeout,
        websocket_timeout=-1,  # waiting for work may take days
        websocket_handshake_timeout=HANDSHAKE_LIMIT,
        websocket_max_message_size=LONGEST_MESSAGE,
        websocket_connect_timeout=3 * HANDSHAKE_LIMIT,  # never: it would answer 403, and a client takes that for its token's end
        server_name="",
        verbosity=1,
    )
    loop = reactor._asyncioEventloop  # type: ignore[attr-defined]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.begin_ending)
    # The loop holds tasks only weakly.
    tasks = [loop.create_task(keep_doing(function)) for function in background]
    allow_many_sockets()
    tune_interpreter()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    for task in tasks:
        task.cancel()
    return not server.listen_failed
