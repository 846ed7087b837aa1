"""Celery's entry points. (A task of the domain is something else: see models/task.py.)"""

from celery import shared_task

from . import jobs
from . import sweep as sweeping


@shared_task
def run_job(job_id: int) -> None:
    jobs.run_job(job_id)


@shared_task
def sweep() -> None:
    sweeping.sweep()
