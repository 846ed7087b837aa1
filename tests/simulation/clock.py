"""Time that passes only when nothing is left to do at its present moment, and the server's own idea of it."""

import asyncio
import selectors
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 11, 20, 14, 0, tzinfo=UTC)


class JumpingSelector(selectors.SelectSelector):
    """Where a real loop would sleep, the clock jumps."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        super().__init__()
        self.jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self.jump(timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = 0.0
        super().__init__(JumpingSelector(self.jump))

    def jump(self, seconds: float | None) -> None:
        if seconds is None:
            raise RuntimeError("nothing is left that could ever happen")
        self.clock += seconds

    def time(self) -> float:
        return self.clock

    def _write_to_self(self) -> None:
        """There is one thread: nobody needs to be woken."""


class ServerClock:
    """The server's wall clock: it may be set back, or forward."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop, self.offset = loop, 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.loop.clock + self.offset)

    def at(self, seconds: float) -> datetime:
        """What it would have said, at that moment of the simulation, were it set as it is now."""
        return START + timedelta(seconds=seconds + self.offset)

    def as_datetime(self) -> type[datetime]:
        """Stands in for `datetime` in django.utils.timezone: whoever has imported `now` by name, and each field's default, follows."""
        clock = self

        class VirtualDatetime(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return clock.now()

        return VirtualDatetime


class OrderedSet(dict[Any, None]):
    """A set whose order is that of its additions: a replay must visit its members in the same order."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class TimeModule:
    """Stands in for the module `time` where the program asks it."""

    def __init__(self, loop: VirtualLoop, *, wall: Callable[[], float]) -> None:
        self.monotonic, self.time = loop.time, wall


# Shorter than in the program, in the same proportions: a simulated hour is too dear to be spent waiting for leases.
NUMBERS: Mapping[str, float] = {
    "HEARTBEAT_INTERVAL": 10,
    "HEARTBEAT_TTL": 30,
    "DROPPED_TTL": 6,
    "OFFERED_TTL": 40,
    "WORKING_TTL_CUSTOM": 120,
    "REWAIT_GRACE": 60,
    "REWAIT_GRACE_CUSTOM": 30,
    "CUSTOM_CLEANUP_AFTER": 240,
    "DAEMON_HEARTBEAT_INTERVAL": 10,
    "DAEMON_TTL": 45,
    "RESTART_DEADLINE": 20,
    "MAX_CRASHES": 2,
    "TASK_ACKNOWLEDGED_TIMEOUT": 40,
    "TASK_PENDING_TIMEOUT": 60,
    "UNRESPONSIVE_AFTER": 10,
    "DISCONNECTED_AFTER": 15,
    "WAITER_RECHECK_INTERVAL": 6,
    "FEED_RECHECK_INTERVAL": 8,
    "JOB_RESEND_AFTER": 20,
    "IDEMPOTENCY_RETENTION": 4 * 3600,  # longer than the clock may jump
}
