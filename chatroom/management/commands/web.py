from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Serve HTTP and WebSockets: one process, for `up` or for a service manager."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")

    def handle(self, *_args: Any, **options: Any) -> None:
        # First, since it chooses Twisted's reactor.
        from chatroom.up.web import serve  # isort: skip
        from chatroom.asgi import application
        from chatroom.pulse import keep_checkpointing, keep_pulse
        from chatroom.up.parent import end_with_parent

        end_with_parent()
        listened = serve(
            application,
            host=options["host"],
            port=options["port"],
            ping_interval=settings.KEEPALIVE_INTERVAL,
            ping_timeout=settings.KEEPALIVE_TIMEOUT,
            background=[keep_pulse, keep_checkpointing],
        )
        if not listened:
            raise CommandError(f"port {options['port']} on {options['host']} cannot be listened on: is it in use?")
