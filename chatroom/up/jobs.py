"""The Celery workers: threads only, so that no process of theirs can be left behind."""

import logging
import os
import socket
import threading
import time
import warnings
from functools import partial
from typing import Any

from celery import Celery, signals
from celery.beat import EmbeddedService, Scheduler
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer import Consumer
from django.db import close_old_connections

logger = logging.getLogger("chatroom.jobs")
# A beat that was missed this many times was not a short hiccup of the broker.
MISSED_SWEEPS = 3


class SteadyConsumer(Consumer):
    """After an outage of the broker Celery would wait up to 30 s for its next try; jobs shall wait three at most."""

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_start=1, interval_step=1, interval_max=3)
        return super().ensure_connected(conn)


def prepare(app: Celery) -> None:
    """Before anything else is asked of the application in this process."""
    # Django has configured the logging; without a receiver Celery would add handlers of its own.
    signals.setup_logging.connect(keep_logging, weak=False)
    app.conf.worker_redirect_stdouts = False
    # `up` and the tests check the project; here it would only load every page, at each start.
    os.environ["CELERY_SKIP_CHECKS"] = "1"
    app.loader.import_default_modules()


def work(app: Celery, *, queue: str, threads: int) -> int:
    """Works on the jobs of one queue until SIGTERM. Returns the exit code."""
    worker = make_worker(app, queue=queue, threads=threads)
    worker.start()
    return int(worker.exitcode or 0)


def make_worker(app: Celery, *, queue: str, threads: int) -> Any:
    worker = app.Worker(
        hostname=f"{queue}@{socket.gethostname()}",
        pool="threads",
        concurrency=threads,
        queues=[queue],
        consumer_cls=SteadyConsumer,
        prefetch_multiplier=1,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        quiet=True,
    )
    # It advises to cancel jobs when the broker is lost: ours are rows, and safe to run twice. Only now, for it has just asked to see these.
    warnings.filterwarnings("ignore", category=CPendingDeprecationWarning)
    return worker


def keep_logging(**_options: Any) -> None:
    """Receives `setup_logging`: nothing to do."""


def start_beat(app: Celery) -> None:
    """Beat as a thread of this process; its schedule needs no file, every entry is due at start."""
    EmbeddedService(app, thread=True, scheduler_cls=Scheduler).start()


class SweepWatch(threading.Thread):
    """Sees that the sweep happens: when the broker brings none, this process sweeps by itself, and says so once."""

    def __init__(self, app: Celery, *, queue: str, interval: float) -> None:
        super().__init__(name="sweep-watch", daemon=True)
        self.entries = [entry for entry in app.conf.beat_schedule.values() if entry.get("options", {}).get("queue") == queue]
        self.tasks = {entry["task"]: app.tasks[entry["task"]] for entry in self.entries}
        self.interval = interval
        self.last = time.monotonic()
        self.running = 0
        self.by_itself = False
        signals.task_prerun.connect(self._began, weak=False)
        signals.task_postrun.connect(self._ended, weak=False)

    def _began(self, task: Any, **_options: Any) -> None:
        if task.name in self.tasks:
            self.running += 1

    def _ended(self, task: Any, **_options: Any) -> None:
        if task.name not in self.tasks:
            return
        self.running -= 1
        self.last = time.monotonic()
        if self.by_itself:
            self.by_itself = False
            logger.warning("the broker is back: sweeps come from it again")

    def run(self) -> None:
        while True:
            time.sleep(min(1.0, self.interval))
            if self.is_overdue():
                self.sweep()
                time.sleep(self.interval)

    def is_overdue(self) -> bool:
        if self.by_itself:
            return not self.running
        return not self.running and time.monotonic() - self.last > MISSED_SWEEPS * self.interval

    def sweep(self) -> None:
        if not self.by_itself:
            self.by_itself = True
            logger.warning(f"no sweep came from the broker for {MISSED_SWEEPS * self.interval:g} s: sweeping without it")
        for entry in self.entries:
            close_old_connections()
            try:
                self.tasks[entry["task"]](*entry.get("args", ()), **entry.get("kwargs", {}))
            except Exception:
                # The database may be away as well: the next round tries again.
                logger.exception(f"{entry['task']} failed")
            finally:
                close_old_connections()
