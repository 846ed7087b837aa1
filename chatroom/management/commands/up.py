from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser


class Command(BaseCommand):
    help = "Start everything: broker, web, workers; prepare what they need; start again what dies. Ctrl-C ends it all."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
        parser.add_argument("--no-demo", dest="demo", action="store_false", help="make no first room")
        parser.add_argument("--no-daemon", dest="daemon", action="store_false", help="start no local daemon")

    def handle(self, *_args: Any, **options: Any) -> None:
        from chatroom.up.run import Options, up

        if not 1 <= options["port"] <= 65535:
            raise CommandError(f"--port {options['port']}: expected a number from 1 to 65535", returncode=2)
        code = up(Options(host=options["host"], port=options["port"], demo=options["demo"], daemon=options["daemon"]))
        if code:
            raise SystemExit(code)
