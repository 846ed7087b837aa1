"""The work of a room: what is active, waits for a person, failed, is queued or lies in the backlog; and what a person may do with each."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Max

from .feed import Fragment, Look
from .models import Event, Origin, Room, Task, TaskStatus
from .models.task import ACTIVE, OPEN_ENDED
from .words import describe_event

S = TaskStatus
MOST_ROWS = 60
MOST_FINISHED = 10
ORDER = {
    status: place
    for place, status in enumerate([S.IN_PROGRESS, S.ACKNOWLEDGED, S.PENDING, S.PENDING_USER_REVIEW, S.FAILED, S.QUEUED, S.BACKLOG])
}


@dataclass(frozen=True)
class Act:
    """A button of a task. One that `asks` opens a line with the question, for it ends or repeats somebody's work."""

    name: str
    label: str
    asks: str = ""
    needs_reason: bool = False
    look: str = ""


START = Act("move_to_queue", "Move to queue", look="filled")
APPROVE = Act("approve", "Approve", look="filled")
SEND_BACK = Act("send_back", "Send back", asks="What is missing?", needs_reason=True)
RETRY = Act("retry", "Retry", look="filled")
RESET = Act("reset", "Reset", asks="Take it from its holder and offer it anew?", look="red")
FORCE = Act("force_complete", "Complete", asks="Count it as done, without the agent?", look="red")
CANCEL = Act("cancel", "Cancel", asks="End this work?", look="red")
CLOSE = Act("cancel", "Close", asks="Why is it closed?", needs_reason=True, look="red")
REOPEN = Act("reopen", "Reopen")
ACTS = {
    S.BACKLOG: [START],
    S.QUEUED: [],
    S.PENDING: [FORCE],
    S.ACKNOWLEDGED: [RESET, FORCE],
    S.IN_PROGRESS: [RESET, FORCE],
    S.PENDING_USER_REVIEW: [APPROVE, SEND_BACK],
    S.FAILED: [RETRY, FORCE],
}


def acts_of(task: Task) -> list[Act]:
    is_backlog = task.origin == Origin.BACKLOG
    if task.status in {S.COMPLETED, S.CLOSED}:
        return [REOPEN] if is_backlog else []
    return [*ACTS[S(task.status)], CLOSE if is_backlog else CANCEL]


@dataclass
class TaskRow:
    task: Task
    last_event: Event | None
    place: int | None = None

    @property
    def acts(self) -> list[Act]:
        return acts_of(self.task)

    @property
    def why(self) -> str:
        return describe_event(self.last_event) if self.last_event else ""

    @property
    def is_review(self) -> bool:
        return self.task.status == S.PENDING_USER_REVIEW


@dataclass
class Board:
    rows: list[TaskRow]
    finished: list[TaskRow]
    counts: Counter[str]

    @property
    def active_count(self) -> int:
        return sum(self.counts[status] for status in ACTIVE)

    @property
    def hidden_count(self) -> int:
        return max(0, sum(self.counts[status] for status in OPEN_ENDED) - len(self.rows))

    @property
    def summary(self) -> str:
        named = [("active", self.active_count), ("to review", self.counts[S.PENDING_USER_REVIEW]), ("failed", self.counts[S.FAILED])]
        named += [("queued", self.counts[S.QUEUED]), ("backlog", self.counts[S.BACKLOG])]
        return " · ".join(f"{count} {name}" for name, count in named if count) or "nothing to do"


def read_board(room: Room) -> Board:
    counts: Counter[str] = Counter()
    tasks: list[Task] = []
    for status in ORDER:
        found = Task.objects.filter(room=room, status=status)
        counts[status] = found.count()
        tasks += found.order_by("-priority", "pk")[:MOST_ROWS] if counts[status] else []
    finished = list(Task.objects.filter(room=room, status__in=[S.COMPLETED, S.CLOSED]).order_by("-pk")[:MOST_FINISHED])
    rows = make_rows([*tasks[:MOST_ROWS], *finished])
    return Board(rows[: len(rows) - len(finished)], rows[len(rows) - len(finished) :], counts)


def make_rows(tasks: list[Task]) -> list[TaskRow]:
    last = last_events("task", [task.pk for task in tasks])
    places: dict[str, int] = defaultdict(int)
    rows = []
    for task in tasks:
        row = TaskRow(task, last.get(task.pk))
        if task.status == S.QUEUED:
            places[task.assigned_role] += 1
            row.place = places[task.assigned_role]
        rows.append(row)
    return rows


def last_events(subject: str, ids: list[int]) -> dict[int, Event]:
    """The newest event of each: why it is as it is."""
    newest = (
        Event.objects.filter(subject=subject, subject_id__in=ids).order_by().values("subject_id").annotate(last=Max("pk")).values("last")
    )
    return {event.subject_id: event for event in Event.objects.filter(pk__in=newest)}


class WorkPart:
    def read(self, look: Look) -> Iterable[Fragment]:
        if look.everything or look.is_new or look.ids("task"):
            yield Fragment("work", "chatroom/_work.html", {"room": look.room, "board": read_board(look.room)})

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        return ()
