from dataclasses import dataclass
from typing import Any

from django.contrib.auth.models import User

from chatroom.errors import Invalid
from chatroom.events import record_event
from chatroom.models import Message, MessageKind, Origin, Room, Task
from chatroom.rows import insert

from .rooms import require_role, room_locked
from .tasks import create_task
from .texts import clean_text

__all__ = ["Sent", "add_backlog_item", "clean_text", "post", "post_notice", "send_message"]


@dataclass(frozen=True)
class Sent:
    message: Message
    task: Task


def send_message(room_id: int, *, text: str, to: str = "", author: User) -> Sent:
    """What a person says becomes a task for the role it is sent to, or for the team's entry point."""
    text = clean_text(text)
    with room_locked(room_id) as room:
        role = require_role(room, to) if to else room.entry_role
        message = post(room, text=text, sender=author.get_username(), to=to, author=author)
        return Sent(message, create_task(room, message=message, role=role, actor=author.get_username()))


def add_backlog_item(room_id: int, *, text: str, to: str = "", author: User, priority: int = 0) -> Task:
    text = clean_text(text)
    if abs(priority) > 1_000_000:
        raise Invalid(f"priority {priority}: expected a whole number between -1000000 and 1000000")
    with room_locked(room_id) as room:
        role = require_role(room, to) if to else room.entry_role
        message = post(room, text=text, sender=author.get_username(), to=role, author=author)
        return create_task(room, message=message, role=role, actor=author.get_username(), origin=Origin.BACKLOG, priority=priority)


def post(
    room: Room,
    *,
    text: str,
    sender: str,
    kind: str = MessageKind.CHAT,
    to: str = "",
    author: User | None = None,
    task: Task | None = None,
    data: dict[str, Any] | None = None,
) -> Message:
    """Writes a message and its event; the caller holds the room's lock."""
    message = insert(Message(room=room, kind=kind, author=author, sender=sender, to=to, text=text, task=task))
    record_event(message, "post", actor=sender, room_id=room.pk, role=to, data={"message": message.pk, "kind": kind, **(data or {})})
    return message


def post_notice(room: Room, text: str, *, task: Task | None = None) -> Message:
    return post(room, text=text, sender="chatroom", kind=MessageKind.NOTICE, task=task)
