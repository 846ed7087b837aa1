"""What needs a person, and what goes on: rooms lists and room pages ask every app that knows something about a room."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Count

from .contributions import contributed
from .feed import Fragment, Look
from .models import Membership, Notice, Room, Task, TaskStatus
from .models.task import HELD

MOST_CARDS = 20


@dataclass(frozen=True)
class Card:
    """Something that needs a person: with the reason, and in its template the button. The gravest has the lowest `order`."""

    key: str
    template: str
    context: Mapping[str, Any]
    order: int
    since: datetime


@dataclass
class Goings:
    """What a row of the rooms list tells."""

    attention: int = 0
    working: int = 0
    ready: int = 0

    @property
    def look(self) -> str:
        return "dead" if self.attention else "working" if self.working else "ready" if self.ready else "offline"

    @property
    def words(self) -> str:
        if self.attention:
            return f"{self.attention} need{'' if self.attention > 1 else 's'} attention"
        return f"{self.working} working" if self.working else "ready" if self.ready else "nobody there"


def read_cards(room: Room) -> list[Card]:
    return sorted((card for reader in contributed("cards") for card in reader(room)), key=lambda card: (card.order, card.since))


def read_goings(room_ids: Iterable[int]) -> dict[int, Goings]:
    goings = {room_id: Goings() for room_id in room_ids}
    for reader in contributed("goings"):
        reader(goings)
    return goings


def task_cards(room: Room) -> Iterable[Card]:
    from .board import make_rows  # the board has no use for cards

    waiting = Task.objects.filter(room=room, status__in=[TaskStatus.FAILED, TaskStatus.PENDING_USER_REVIEW]).order_by("-pk")
    for row in make_rows(list(waiting[:MOST_CARDS])):
        order = 20 if row.is_review else 10
        yield Card(f"attention-task-{row.task.pk}", "chatroom/_task_card.html", {"row": row}, order, row.task.status_since)


def task_goings(goings: dict[int, Goings]) -> None:
    counted: dict[int, Counter[str]] = defaultdict(Counter)
    statuses = [TaskStatus.FAILED, TaskStatus.PENDING_USER_REVIEW, *HELD]
    for room_id, status, count in (
        Task.objects.filter(room__in=goings, status__in=statuses).order_by().values_list("room", "status").annotate(count=Count("pk"))
    ):
        counted[room_id][status] = count
    for room_id, found in counted.items():
        goings[room_id].attention += found[TaskStatus.FAILED] + found[TaskStatus.PENDING_USER_REVIEW]
        goings[room_id].working += sum(found[status] for status in HELD)
    for room_id, count in Notice.objects.filter(room__in=goings).open().order_by().values_list("room").annotate(count=Count("pk")):
        goings[room_id].attention += count


@dataclass
class Attention:
    cards: list[Card] = field(default_factory=list)

    @property
    def shown(self) -> list[Card]:
        return self.cards[:MOST_CARDS]

    @property
    def hidden_count(self) -> int:
        return max(0, len(self.cards) - MOST_CARDS)


class AttentionPart:
    def read(self, look: Look) -> Iterable[Fragment]:
        if look.events or look.is_new:
            yield attention_fragment(look.room)

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        """What stood on a card and changed without an event."""
        keys = [card.key for card in read_cards(room)]
        if memory.setdefault("attention", keys) != keys:
            memory["attention"] = keys
            yield attention_fragment(room)


def attention_fragment(room: Room) -> Fragment:
    return Fragment("attention", "chatroom/_attention.html", {"room": room, "attention": Attention(read_cards(room))})


class PeoplePart:
    def read(self, look: Look) -> Iterable[Fragment]:
        if look.everything or look.ids("room"):
            yield Fragment("people", "chatroom/_people.html", {"room": look.room, "memberships": read_people(look.room)})

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        return ()


def read_people(room: Room) -> list[Membership]:
    return list(Membership.objects.filter(room=room).select_related("user").order_by("pk"))
