"""Celery's entry points. (A task of the domain is something else: see models/task.py.)"""

import logging

from . import jobs
from . import sweep as sweeping
from .celery import app  # bound to ours: the web process, which loads nothing else of it, would send to Celery's own default

log = logging.getLogger(__name__)


@app.task
def run_jobs(job_ids: list[int]) -> None:
    for job_id in job_ids:
        try:
            jobs.run_job(job_id)
        except Exception:
            log.exception("job %s failed, and that could not be noted; it is sent again", job_id)


@app.task
def sweep() -> None:
    sweeping.sweep()
