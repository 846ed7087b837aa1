"""Jobs: rows first, messages second; done once, whatever happens to the messages."""

import queue
from collections.abc import Iterator
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from django.conf import settings
from django.db import OperationalError, transaction
from django.utils.timezone import now
from pytest_django import DjangoCaptureOnCommitCallbacks

from chatroom import jobs, notices
from chatroom.jobs import enqueue, run_job
from chatroom.models import Event, Job, JobState, Message, Notice, Room
from chatroom.services.rooms import room_locked
from chatroom.sweep import send_jobs_again
from chatroom.tasks import run_jobs
from tests.factories import make_task

pytestmark = pytest.mark.django_db


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The jobs whose messages went out."""
    found: list[int] = []
    monkeypatch.setattr(jobs, "send_job", found.append)
    return found


@pytest.fixture
def handled() -> Iterator[list[Any]]:
    """What the handler `note` was given; `fail` makes it fail."""
    found: list[Any] = []

    def note(*, what: str) -> None:
        Message.objects.create(room_id=Room.objects.values_list("pk", flat=True).get(), sender="job", text=what)
        if what == "fail":
            raise ValueError("no network")
        found.append(what)

    jobs.HANDLERS["note"] = note
    yield found
    del jobs.HANDLERS["note"]


def age(job: Job, **fields: float) -> None:
    Job.objects.filter(pk=job.pk).update(**{name: now() - timedelta(seconds=seconds) for name, seconds in fields.items()})


def test_a_job_whose_failure_cannot_be_noted_takes_no_other_with_it(
    room: Room, sent: list[int], handled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(job_id: int, error: Exception) -> None:
        raise OperationalError("the database is away")

    monkeypatch.setattr(jobs, "note_failure", cannot)
    run_jobs([enqueue("note", what=what).pk for what in ("fail", "second")])
    assert handled == ["second"]


def test_a_job_is_sent_after_the_commit_of_its_cause(
    room: Room, sent: list[int], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        job = enqueue("note", what="hello")
        assert sent == []
    assert sent == [job.pk]


def test_a_job_whose_cause_was_rolled_back_never_was(
    room: Room, sent: list[int], django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        enqueue("note", what="hello")
        transaction.set_rollback(True)
    assert (sent, Job.objects.count()) == ([], 0)


def test_a_job_is_done_once_however_often_it_is_told(room: Room, handled: list[Any]) -> None:
    job = enqueue("note", what="hello")
    assert [run_job(job.pk) for _ in range(3)] == [True, False, False]
    assert handled == ["hello"]
    after = Job.objects.get(pk=job.pk)
    assert (after.state, after.attempts, after.done_at is not None) == (JobState.DONE, 1, True)


def test_a_job_that_nobody_knows_is_no_fault(handled: list[Any]) -> None:
    assert not run_job(12345)


def test_a_failed_job_leaves_nothing_behind_and_is_tried_again_later(room: Room, handled: list[Any]) -> None:
    job = enqueue("note", what="fail")
    assert not run_job(job.pk)
    after = Job.objects.get(pk=job.pk)
    assert (after.state, after.attempts, after.last_error) == (JobState.WAITING, 1, "ValueError: no network")
    assert after.due_at > now()
    assert not Message.objects.exists()
    assert not run_job(job.pk)  # not before its time
    assert Job.objects.get(pk=job.pk).attempts == 1
    Job.objects.filter(pk=job.pk).update(due_at=now(), payload={"what": "hello"})
    assert run_job(job.pk)


def test_a_job_that_failed_for_a_day_is_given_up(room: Room, handled: list[Any]) -> None:
    job = enqueue("note", what="fail")
    age(job, created_at=86401)
    run_job(job.pk)
    assert Job.objects.get(pk=job.pk).state == JobState.FAILED


def test_a_job_of_an_unknown_kind_says_so(room: Room) -> None:
    job = enqueue("nothing")
    run_job(job.pk)
    assert "nothing" in Job.objects.get(pk=job.pk).last_error


@pytest.mark.scenario(88)
def test_a_job_whose_message_was_lost_is_sent_again_until_it_is_done(room: Room, sent: list[int], handled: list[Any]) -> None:
    lost, recent, done = (enqueue("note", what=what) for what in ("lost", "recent", "done"))
    run_job(done.pk)
    for job in (lost, done):
        age(job, sent_at=31)
    assert send_jobs_again() == 1
    assert send_jobs_again() == 0
    assert sent == [lost.pk]
    age(lost, sent_at=31)
    send_jobs_again()
    assert sent == [lost.pk, lost.pk]
    assert [run_job(job_id) for job_id in sent] == [True, False]
    assert handled == ["done", "lost"]
    assert Job.objects.get(pk=recent.pk).state == JobState.WAITING


def test_a_broker_that_is_away_is_said_and_costs_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from chatroom.tasks import run_jobs

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(run_jobs, "apply_async", away)
    jobs.publish([12])
    assert "jobs [12] could not be sent (nobody listens): the sweep sends them again" in caplog.text


def test_what_waited_behind_a_hung_broker_for_long_is_left_to_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    published: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    monkeypatch.setattr(jobs, "publish", published.put)
    found: list[int] = []
    for job_id, waited in [(1, 0.0), (2, settings.JOB_RESEND_AFTER + 1), (3, 0.0)]:
        jobs.unsent().put((job_id, monotonic() - waited))
    while len(found) < 2:
        found += published.get(timeout=20)
    assert found == [1, 3]


def test_a_message_of_several_jobs_runs_each_of_them(room: Room, sent: list[int], handled: list[Any]) -> None:
    from chatroom.tasks import run_jobs

    rows = [enqueue("note", what=what) for what in ("one", "fail", "two")]
    run_jobs([row.pk for row in rows])
    assert handled == ["one", "two"]
    assert [Job.objects.get(pk=row.pk).state for row in rows] == [JobState.DONE, JobState.WAITING, JobState.DONE]


def test_people_are_told_once_per_episode_and_a_job_passes_it_on(room: Room) -> None:
    task = make_task(room)
    with room_locked(room.pk) as locked:
        told = [notices.tell(locked, "episode-1", text="somebody has to come", task=task) for _ in range(2)]
    assert told == [True, False]
    job = Job.objects.get()
    assert (job.kind, Notice.objects.count(), Message.objects.filter(kind="notice").count()) == ("pass_on_notice", 1, 1)
    assert run_job(job.pk)
    event = Event.objects.get(trigger="tell")
    assert (event.room_id, event.data) == (room.pk, {"notice": Notice.objects.get().pk, "members": 3})
    assert Notice.objects.get().told_at is not None


@pytest.mark.scenario(90)
def test_with_a_clock_set_back_a_job_is_sent_again_and_done(room: Room, sent: list[int], handled: list[Any]) -> None:
    job = enqueue("note", what="hello")
    age(job, sent_at=-3600, due_at=-3600)
    send_jobs_again()
    assert sent == [job.pk]
    assert run_job(job.pk)
    assert handled == ["hello"]
