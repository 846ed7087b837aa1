"""The ASGI application of the web process."""

import os
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
django.setup(set_prefix=False)

from channels.routing import ProtocolTypeRouter  # noqa: E402  (after the set-up)
from django.conf import settings  # noqa: E402
from django.core.exceptions import RequestAborted  # noqa: E402
from django.core.handlers.asgi import ASGIHandler, get_script_prefix  # noqa: E402
from django.core.signals import request_finished, request_started  # noqa: E402
from django.db import close_old_connections, reset_queries  # noqa: E402
from django.urls import set_script_prefix  # noqa: E402

from . import api_docs  # noqa: E402
from .db import PageThreads, SharedThread  # noqa: E402
from .routing import websocket_application  # noqa: E402

PAGE_THREADS = 4


class ApiHandler(ASGIHandler):
    """Django's handler with the API's short stack of middleware."""

    def load_middleware(self, is_async: bool = False) -> None:
        pages, settings.MIDDLEWARE = settings.MIDDLEWARE, settings.API_MIDDLEWARE
        try:
            super().load_middleware(is_async=is_async)
        finally:
            settings.MIDDLEWARE = pages

    async def handle(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """An act needs none of the tasks and thread hops with which Django watches for a client that hangs up: it is done in any case."""
        if scope["method"] != "POST":
            await super().handle(scope, receive, send)
            return
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        set_script_prefix(get_script_prefix(scope))
        request, refusal = self.create_request(scope, body)
        response: Any = await self.run_get_response(request) if request else refusal
        await self.send_response(response, send)
        response.close()
        body.close()


def keep_connections() -> None:
    """Django's own receivers would add a thread hop to each request; the executors and KeptConnectionsMiddleware look after connections."""
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_old_connections)
    request_started.disconnect(reset_queries)


keep_connections()
api_application = SharedThread(ApiHandler())
page_application = PageThreads(ASGIHandler(), threads=PAGE_THREADS)


async def http_application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    is_api = scope["path"].startswith(("/api/", "/livez", "/readyz")) and scope["path"] not in api_docs.PATHS
    await (api_application if is_api else page_application)(scope, receive, send)


application = ProtocolTypeRouter({"http": http_application, "websocket": websocket_application})
