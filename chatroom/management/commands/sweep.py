import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand


class Command(BaseCommand):
    help = "Sweep: let what ran out be noticed. A worker of its own, with its beat, so that no other job delays it."
    requires_system_checks: list[str] = []

    def handle(self, *_args: Any, **_options: Any) -> None:
        from chatroom.celery import app
        from chatroom.up.jobs import SweepWatch, prepare, start_beat, work
        from chatroom.up.parent import end_with_parent

        end_with_parent()
        prepare(app)
        SweepWatch(app, queue="sweep", interval=settings.SWEEP_INTERVAL).start()
        start_beat(app)
        sys.exit(work(app, queue="sweep", threads=1))
