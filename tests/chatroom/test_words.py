"""Events in words: once, and with the reason."""

import pytest

from chatroom.models import Event
from chatroom.words import describe_event


@pytest.mark.parametrize(
    ("trigger", "reason", "words"),
    [
        ("heartbeat_expired", "its lease ran out: last heard of at 12:46:30 UTC", "its lease ran out: last heard of at 12:46:30 UTC"),
        ("leave", "stopped by alice", "stopped by alice"),
        ("leave", "its program ended", "stopped: its program ended"),
        ("process_exited", "ended with exit code 3", "its process ended: ended with exit code 3"),
        ("join", "", "joined"),
    ],
)
def test_what_the_reason_says_already_is_not_said_twice(trigger: str, reason: str, words: str) -> None:
    assert describe_event(Event(subject="agent", trigger=trigger, reason=reason, actor="laptop-7")) == words
