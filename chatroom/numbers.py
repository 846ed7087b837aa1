"""The numbers of the design, each from `CHATROOM_<NAME>`, checked at start. Durations are seconds."""

import os

from django.core.exceptions import ImproperlyConfigured

DEFAULTS: dict[str, float] = {
    "HEARTBEAT_INTERVAL": 30,
    "HEARTBEAT_TTL": 90,
    "DROPPED_TTL": 10,
    "OFFERED_TTL": 120,
    "WORKING_TTL_CUSTOM": 60 * 60,
    "REWAIT_GRACE": 5 * 60,
    "REWAIT_GRACE_CUSTOM": 90,
    "CUSTOM_CLEANUP_AFTER": 24 * 3600,
    "DAEMON_HEARTBEAT_INTERVAL": 30,
    "DAEMON_TTL": 120,
    "KEEPALIVE_INTERVAL": 5,
    "KEEPALIVE_TIMEOUT": 20,
    "UNRESPONSIVE_AFTER": 5,
    "DISCONNECTED_AFTER": 10,
    "RESTART_ATTEMPTS": 3,
    "RESTART_DELAY": 3,
    "RESTART_DEADLINE": 60,
    "MACHINE_SLOTS": 5,
    "MACHINE_QUEUE": 20,
    "MACHINE_AGENTS": 100,
    "RETRY_ATTEMPTS": 3,
    "TASK_ACKNOWLEDGED_TIMEOUT": 120,
    "TASK_PENDING_TIMEOUT": 300,
    "MAX_CRASHES": 3,
    "SWEEP_INTERVAL": 5,
    "PULSE_INTERVAL": 5,
    "PULSE_STALE_AFTER": 15,
    "WAITER_RECHECK_INTERVAL": 2,
    "FEED_RECHECK_INTERVAL": 3,
    "RUN_TIMEOUT": 30 * 60,
    "RUN_SILENCE_WARNING": 10 * 60,
    "STOP_GRACE": 5,
    "STOP_LIMIT": 15,
    "DRAIN_TIMEOUT": 30,
    "LOG_RETENTION": 30 * 86400,
    "EVENT_RETENTION": 90 * 86400,
    "IDEMPOTENCY_RETENTION": 24 * 3600,
    "JOB_RESEND_AFTER": 30,
    "PART_RESTART_DELAY": 1,
    "PART_RESTART_LIMIT": 30,
    "DATABASE_THREADS": 4,
    "API_RATE": 300,
    "API_BURST": 3000,
}
WHOLE = {
    *("RESTART_ATTEMPTS", "MACHINE_SLOTS", "MACHINE_QUEUE", "MACHINE_AGENTS", "RETRY_ATTEMPTS", "MAX_CRASHES", "DATABASE_THREADS"),
    *("API_RATE", "API_BURST"),
}
MAY_BE_ZERO = {"RUN_TIMEOUT"}


def read_number(name: str) -> float:
    """The value of `CHATROOM_<name>`, or its default. Raises ImproperlyConfigured with what was found and what was expected."""
    default, found = DEFAULTS[name], os.environ.get(f"CHATROOM_{name}")
    if found is None:
        return default
    expected = f"expected {'a whole number' if name in WHOLE else 'seconds'}, for example {default:g}"
    try:
        value = int(found) if name in WHOLE else float(found)
    except ValueError:
        raise ImproperlyConfigured(f"CHATROOM_{name}={found}: {expected}") from None
    if not 0 < value < 10**9 and not (value == 0 and name in MAY_BE_ZERO):
        raise ImproperlyConfigured(f"CHATROOM_{name}={found}: {expected}, more than 0")
    return value


def read_numbers() -> dict[str, float]:
    """Every number by its name. Raises ImproperlyConfigured when two of them contradict each other."""
    numbers = {name: read_number(name) for name in DEFAULTS}
    for smaller, larger in [
        ("HEARTBEAT_INTERVAL", "HEARTBEAT_TTL"),
        ("DAEMON_HEARTBEAT_INTERVAL", "HEARTBEAT_TTL"),
        ("PULSE_INTERVAL", "PULSE_STALE_AFTER"),
        ("UNRESPONSIVE_AFTER", "DISCONNECTED_AFTER"),
    ]:
        if numbers[smaller] >= numbers[larger]:
            found = f"CHATROOM_{smaller}={numbers[smaller]:g}, CHATROOM_{larger}={numbers[larger]:g}"
            raise ImproperlyConfigured(f"{found}: expected {smaller} to be less than {larger}")
    return numbers
