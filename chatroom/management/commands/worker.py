import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser


class Command(BaseCommand):
    help = "Work on the jobs of the default queue."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--threads", type=int, default=4, help="jobs at the same time (default: %(default)s)")

    def handle(self, *_args: Any, **options: Any) -> None:
        from chatroom.celery import app
        from chatroom.up.jobs import prepare, work
        from chatroom.up.parent import end_with_parent

        end_with_parent()
        prepare(app)
        sys.exit(work(app, queue="default", threads=options["threads"]))
