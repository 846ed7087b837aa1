"""Jobs: rows first, messages second. `enqueue` in the transaction of the cause; run under its row's lock, a job is done once."""

import logging
import queue
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from time import monotonic
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils.timezone import now

from .models import Job, JobState
from .rows import insert

log = logging.getLogger(__name__)
Handler = Callable[..., None]
HANDLERS: dict[str, Handler] = {}
MAX_DELAY = 300
TOGETHER = 20


def job(function: Handler) -> Handler:
    """Registers a handler by its name. It runs inside the transaction that marks the job done."""
    HANDLERS[function.__name__] = function
    return function


def enqueue(kind: str, **payload: Any) -> Job:
    row = insert(Job(kind=kind, payload=payload))
    transaction.on_commit(lambda: send_job(row.pk))
    return row


def send_job(job_id: int) -> None:
    """Tells the worker, from a thread: a broker that hangs must not hold up who commits. A lost message is sent again by the sweep."""
    unsent().put((job_id, monotonic()))


@cache
def unsent() -> "queue.SimpleQueue[tuple[int, float]]":
    waiting: queue.SimpleQueue[tuple[int, float]] = queue.SimpleQueue()
    threading.Thread(target=publish_jobs, args=(waiting,), name="send-jobs", daemon=True).start()
    return waiting


def publish_jobs(waiting: "queue.SimpleQueue[tuple[int, float]]") -> None:
    """Several that came meanwhile travel in one message. What waited behind a broker that hung is the sweep's by now."""
    while True:
        found = [waiting.get()]
        while len(found) < TOGETHER and not waiting.empty():
            found.append(waiting.get())
        if fresh := [job_id for job_id, since in found if monotonic() - since < settings.JOB_RESEND_AFTER]:
            publish(fresh)


def publish(job_ids: list[int]) -> None:
    from .tasks import run_jobs  # Celery's side of this module

    try:
        run_jobs.apply_async((job_ids,), expires=settings.JOB_RESEND_AFTER)
    except Exception as error:
        log.warning("jobs %s could not be sent (%s): the sweep sends them again", job_ids, error)


def run_job(job_id: int) -> bool:
    """Runs a waiting job; a second message about it finds it done. A failure is kept and tried again later, for at most 24 h."""
    try:
        with transaction.atomic():
            row = Job.objects.select_for_update(skip_locked=True).filter(is_due(), pk=job_id, state=JobState.WAITING).first()
            if row is None:
                return False
            HANDLERS[row.kind](**row.payload)
            row.state, row.done_at, row.attempts = JobState.DONE, now(), row.attempts + 1
            row.save()
            return True
    except Exception as error:
        log.exception("job %s failed", job_id)
        note_failure(job_id, error)
        return False


def is_due() -> Q:
    """Its time has come; or lies further ahead than any delay, because the clock was set back."""
    time = now()
    return Q(due_at__lte=time) | Q(due_at__gt=time + timedelta(seconds=MAX_DELAY))


def note_failure(job_id: int, error: Exception) -> None:
    with transaction.atomic():
        row = Job.objects.select_for_update().get(pk=job_id)
        row.attempts += 1
        row.last_error = f"{type(error).__name__}: {error}"[:2000]
        row.due_at = now() + timedelta(seconds=min(2**row.attempts, MAX_DELAY))
        if now() - row.created_at > timedelta(days=1):
            row.state = JobState.FAILED
        row.save()
