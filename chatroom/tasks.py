"""Celery's entry points. (A task of the domain is something else: see models/task.py.)"""

import logging

from celery import shared_task

from . import jobs
from . import sweep as sweeping

log = logging.getLogger(__name__)


@shared_task
def run_jobs(job_ids: list[int]) -> None:
    for job_id in job_ids:
        try:
            jobs.run_job(job_id)
        except Exception:
            log.exception("job %s failed, and that could not be noted; it is sent again", job_id)


@shared_task
def sweep() -> None:
    sweeping.sweep()
