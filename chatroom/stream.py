"""What is said in a room; and under a message that began a chain, who had the work, for how long, and who is next."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from .feed import Fragment, Look
from .markdown import LONGEST_PARSED, render_markdown
from .models import Event, Message, MessageKind, Room, Task, TaskStatus
from .models.task import ACTIVE, HELD

PAGE_OF_MESSAGES = 60
MOST_STEPS = 8
S = TaskStatus
LOOKS = {
    S.COMPLETED: "done",
    S.PENDING_USER_REVIEW: "done",
    S.ACKNOWLEDGED: "held",
    S.IN_PROGRESS: "held",
    S.PENDING: "waiting",
    S.QUEUED: "waiting",
    S.BACKLOG: "waiting",
    S.FAILED: "failed",
    S.CLOSED: "closed",
}


@dataclass
class Step:
    """One task of a chain: how long it was held by agents so far, and since when it is now."""

    task: Task
    held_for: timedelta = timedelta()
    held_since: datetime | None = None

    @property
    def look(self) -> str:
        return LOOKS[S(self.task.status)]

    @property
    def counts_from(self) -> datetime | None:
        """A page counts on from here without the server: all the time it was held, before now too."""
        return self.held_since - self.held_for if self.held_since else None


@dataclass
class Chain:
    message_id: int
    steps: list[Step]
    next_roles: list[str]

    @property
    def shown(self) -> list[Step]:
        return self.steps[-MOST_STEPS:]

    @property
    def hidden_count(self) -> int:
        return max(0, len(self.steps) - MOST_STEPS)

    @property
    def current(self) -> Task:
        return self.steps[-1].task


@dataclass
class Row:
    message: Message
    continues: bool = False
    chain: Chain | None = None
    looks: dict[str, Any] = field(default_factory=dict)

    @property
    def html(self) -> str:
        return render_markdown(self.message.text)

    @property
    def is_cut(self) -> bool:
        return len(self.message.text) > LONGEST_PARSED

    @property
    def template(self) -> str:
        return f"chatroom/messages/_{self.message.kind}.html"

    @property
    def initials(self) -> str:
        sender = self.message.sender
        return sender[:2] if self.message.author_id else sender[:1]


def read_stream(room: Room, *, before: int | None = None) -> tuple[list[Row], bool]:
    """The newest messages, oldest first, and whether there are earlier ones."""
    messages = Message.objects.filter(room=room).order_by("-pk")
    if before is not None:
        messages = messages.filter(pk__lt=before)
    page = list(messages[: PAGE_OF_MESSAGES + 1])
    rows = make_rows(room, page[:PAGE_OF_MESSAGES][::-1])
    return rows, len(page) > PAGE_OF_MESSAGES


def make_rows(room: Room, messages: list[Message], *, previous: Message | None = None) -> list[Row]:
    chains = read_chains(room, [message.pk for message in messages])
    rows = []
    for message in messages:
        rows.append(Row(message, continues=is_continued(previous, message), chain=chains.get(message.pk)))
        previous = message
    return rows


def is_continued(previous: Message | None, message: Message) -> bool:
    """Progress lines of one task stand under one name."""
    if previous is None or message.kind != MessageKind.PROGRESS or previous.kind != MessageKind.PROGRESS:
        return False
    return (previous.sender, previous.task_id) == (message.sender, message.task_id)


def read_chains(room: Room, message_ids: Iterable[int]) -> dict[int, Chain]:
    """The chains that these messages began."""
    tasks = list(Task.objects.filter(room=room, chain__in=list(message_ids)).order_by("pk"))
    steps = hold_times(tasks)
    grouped: dict[int, list[Step]] = defaultdict(list)
    for task in tasks:
        grouped[task.chain_id].append(steps[task.pk])
    return {message_id: Chain(message_id, found, next_roles(room, found)) for message_id, found in grouped.items()}


def hold_times(tasks: list[Task]) -> dict[int, Step]:
    """From the log: between a task's claim and whatever ended it."""
    steps = {task.pk: Step(task) for task in tasks}
    if not steps:
        return steps
    is_about_holding = Q(from_state__in=HELD) | Q(to_state__in=HELD)
    for event in Event.objects.filter(is_about_holding, subject="task", subject_id__in=steps).order_by("pk"):
        step = steps[event.subject_id]
        if event.to_state in HELD:
            step.held_since = step.held_since or event.created_at
        elif step.held_since:
            step.held_for += event.created_at - step.held_since
            step.held_since = None
    return steps


def next_roles(room: Room, steps: list[Step]) -> list[str]:
    last = steps[-1].task
    if last.status not in ACTIVE or last.assigned_role not in room.team:
        return []
    return room.team[room.team.index(last.assigned_role) + 1 :][:3]


class StreamPart:
    """New messages are appended, for they never change; the chain under an older one is redrawn."""

    def read(self, look: Look) -> Iterable[Fragment]:
        if look.everything:
            rows, has_earlier = read_stream(look.room)
            yield Fragment("messages", "chatroom/_messages.html", {"room": look.room, "rows": rows, "has_earlier": has_earlier})
            return
        new = list(Message.objects.filter(room=look.room, pk__in=look.ids("message")).order_by("pk"))
        for row in make_rows(look.room, new, previous=self.previous(look.room, new)):
            yield Fragment(f"message-{row.message.pk}", "chatroom/_message.html", {"room": look.room, "row": row}, append_to="messages")
        yield from self.chains(look, shown={message.pk for message in new})

    def previous(self, room: Room, new: list[Message]) -> Message | None:
        return Message.objects.filter(room=room, pk__lt=new[0].pk).order_by("-pk").first() if new else None

    def chains(self, look: Look, *, shown: set[int]) -> Iterable[Fragment]:
        touched = set(Task.objects.filter(pk__in=look.ids("task")).values_list("chain", flat=True)) - shown
        for message_id, chain in read_chains(look.room, touched).items():
            yield Fragment(f"chain-{message_id}", "chatroom/_chain.html", {"room": look.room, "chain": chain, "message_id": message_id})

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        return ()
