from .event import Event, Notice
from .job import IdempotencyRecord, Job, JobState, Pulse
from .message import Message, MessageKind
from .room import MemberRole, Membership, Room
from .task import Origin, Task, TaskStatus
from .token import DeviceGrant, GrantState, Token, TokenKind

__all__ = [
    "DeviceGrant",
    "Event",
    "GrantState",
    "IdempotencyRecord",
    "Job",
    "JobState",
    "MemberRole",
    "Membership",
    "Message",
    "MessageKind",
    "Notice",
    "Origin",
    "Pulse",
    "Room",
    "Task",
    "TaskStatus",
    "Token",
    "TokenKind",
]
