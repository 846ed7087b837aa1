"""The sweep: what only a timer can notice. Each step looks at what is due and nothing else, and is safe beside another sweep."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from time import monotonic
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, models, transaction
from django.db.models import Q
from django.utils.timezone import now

from .db import side_by_side
from .models import IdempotencyRecord, Job, JobState, Pulse
from .prepared import Prepared

log = logging.getLogger(__name__)
BATCH = 500
AHEAD = timedelta(seconds=2)  # the clocks of several servers agree better than that
Step = Callable[[], int]
STEPS: list[Step] = []


def step(function: Step) -> Step:
    """Registers a step; it returns how many rows it changed. Apps above add theirs when they are ready."""
    STEPS.append(function)
    return function


def sweep() -> dict[str, int]:
    """One round. A step that fails is said and does not stop the others. Returns what each step changed."""
    done: dict[str, int] = {}
    for function in STEPS:
        try:
            done[function.__name__] = function()
        except DatabaseError as error:
            log.warning("sweep step %s: %s; the next sweep tries again", function.__name__, error)
        except Exception:
            log.exception("sweep step %s failed; the next sweep tries again", function.__name__)
    Pulse.objects.filter(pk=1).update(swept_at=now())
    if any(done.values()):
        log.info("sweep: %s", ", ".join(f"{name} {count}" for name, count in done.items() if count))
    return done


def each_due(due: Callable[[], Sequence[tuple[int, int]]], act: Callable[[int, int], bool]) -> int:
    """Calls `act(room_id, pk)` for each row that is due, each in a transaction of its own; a row that fails doesn't stop the others.
    Many are shared among a few threads. `due()` names BATCH of them (`keys_of`), or more; fewer only if that is all.

    Returns how many were changed. Goes on until nothing is due, but leaves the other steps their turn after a while.
    """
    done, ends = 0, monotonic() + settings.SWEEP_INTERVAL
    while True:
        keys = due()
        changed = sum(side_by_side([partial(try_one, act, room_id, pk) for room_id, pk in keys]))
        done += changed
        if len(keys) < BATCH or changed == 0 or monotonic() > ends:
            return done


def keys_of(due: models.QuerySet[Any, Any]) -> models.QuerySet[Any, Any]:
    return due.values_list("room_id", "pk")[:BATCH]


def try_one(act: Callable[[int, int], bool], room_id: int, pk: int) -> bool:
    try:
        return act(room_id, pk)
    except (OperationalError, InterfaceError):
        raise  # the database itself: the others would fail as well
    except Exception:
        log.exception("sweep: %s(%s, %s) failed; the next sweep tries again", act.__name__, room_id, pk)
        return False


def is_quiet(*, look_again_after: float = 0) -> bool:
    """After an outage of ours everybody first gets the chance to say that they live: no timer declares anything until then.

    `look_again_after`: for so many seconds of the clock the last look will do.
    """
    age = (now() - LAST_LOOK.at).total_seconds()
    if not 0 <= age < look_again_after:
        LAST_LOOK.is_quiet, LAST_LOOK.at = is_quiet_now(), now()
    return LAST_LOOK.is_quiet


def is_quiet_now() -> bool:
    pulse = PULSE.first(pulse=1)
    if pulse is None:
        return True
    return pulse.quiet_until > now() or pulse.beat_at < now() - timedelta(seconds=settings.PULSE_STALE_AFTER)


@dataclass
class Look:
    at: datetime
    is_quiet: bool


LAST_LOOK = Look(datetime.min.replace(tzinfo=UTC), is_quiet=True)


PULSE = Prepared[Pulse](lambda pulse: Pulse.objects.filter(pk=pulse))
LOCKED_PULSE = Prepared[Pulse](lambda pulse: Pulse.objects.filter(pk=pulse).select_for_update())


def is_past(field: str, *, oldest: Any, ahead: Any) -> Q:
    """Longer ago than that; or ahead of the clock, which was set back meanwhile: nobody would wait for it to come round again."""
    return Q(**{f"{field}__lt": oldest}) | Q(**{f"{field}__gt": ahead})


def past(seconds: float) -> dict[str, datetime]:
    """The two times that `is_past` asks for."""
    time = now()
    return {"oldest": time - timedelta(seconds=seconds), "ahead": time + AHEAD}


def beat_pulse() -> None:
    """A web process lives. The beat that finds the pulse stale, or ahead of a clock set back, begins the quiet time."""
    stale = timedelta(seconds=settings.PULSE_STALE_AFTER)
    with transaction.atomic():
        if PULSE.first(pulse=1) is None:
            Pulse.objects.get_or_create(pk=1)
        pulse, time = LOCKED_PULSE.first(pulse=1), now()
        assert pulse is not None
        if abs(time - pulse.beat_at) > stale:
            pulse.quiet_until = time + timedelta(seconds=settings.HEARTBEAT_TTL)
            pulse.missed_seconds += max(0.0, (time - pulse.beat_at).total_seconds())
        pulse.beat_at = time
        pulse.save()


@step
def cut_quiet_time() -> int:
    """A clock set back must not silence the timers for an hour."""
    longest = now() + timedelta(seconds=settings.HEARTBEAT_TTL)
    return Pulse.objects.filter(pk=1, quiet_until__gt=longest).update(quiet_until=longest)


@step
def send_jobs_again() -> int:
    """A job whose message was lost, or whose worker died."""
    from .jobs import send_job

    ids = [pk for (pk,) in UNDONE_JOBS.plain_rows(**past(settings.JOB_RESEND_AFTER))]
    for job_id in ids:
        if undone_jobs(**past(settings.JOB_RESEND_AFTER)).filter(pk=job_id).update(sent_at=now()):
            send_job(job_id)
    return len(ids)


def undone_jobs(oldest: Any, ahead: Any) -> models.QuerySet[Job]:
    return Job.objects.filter(is_past("sent_at", oldest=oldest, ahead=ahead), state=JobState.WAITING)


UNDONE_JOBS = Prepared[Job](lambda oldest, ahead: undone_jobs(oldest, ahead).order_by("sent_at").values_list("pk")[:BATCH])


@step
def forget_old_answers() -> int:
    oldest = now() - timedelta(seconds=settings.IDEMPOTENCY_RETENTION)
    ids = [pk for (pk,) in OLD_ANSWERS.plain_rows(oldest=oldest)]
    if not ids:
        return 0
    with transaction.atomic():
        return IdempotencyRecord.objects.filter(pk__in=ids).delete()[0]


OLD_ANSWERS = Prepared[IdempotencyRecord](lambda oldest: IdempotencyRecord.objects.filter(created_at__lt=oldest).values_list("pk")[:BATCH])
