"""Client commands as Django sees them, so that `manage.py help X` and `call_command` work; `manage.py X` itself never comes here."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser

from chatroom.client import arguments, main
from chatroom.client.errors import ClientError


class ClientCommand(BaseCommand):
    requires_system_checks: list[str] = []
    name: str

    def run_from_argv(self, argv: list[str]) -> NoReturn:
        sys.exit(main.run(self.name, argv[2:], prog=argv[0]))

    def add_arguments(self, parser: CommandParser) -> None:
        main.load(self.name).arguments(parser)
        arguments.add_connection(parser)

    def handle(self, **options: Any) -> None:
        with contextlib.redirect_stdout(self.stdout), contextlib.redirect_stderr(self.stderr), kept_signals():  # type: ignore[type-var]
            try:
                code = main.load(self.name).run(argparse.Namespace(**options))
            except ClientError as error:
                raise CommandError(error.message, returncode=error.exit_code) from error
        if code:
            raise CommandError(f"{self.name} ended with {code}", returncode=code)


@contextlib.contextmanager
def kept_signals() -> Iterator[None]:
    """A command takes the signals for itself, and for the rest of its process; here the process goes on."""
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may touch them
    taken = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main else ()
    handlers = {signum: signal.getsignal(signum) for signum in taken}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def client_command(name: str) -> type[ClientCommand]:
    return type("Command", (ClientCommand,), {"name": name, "help": main.COMMANDS[name]})
