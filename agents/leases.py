"""How long an agent is believed without a sign of life. Only the server's clock counts."""

from datetime import datetime, timedelta

from django.conf import settings
from django.utils.timezone import now

from .models import Agent, AgentStatus


def lease(seconds: float) -> datetime:
    return now() + timedelta(seconds=seconds)


def waiting_lease() -> datetime:
    return lease(settings.HEARTBEAT_TTL)


def offered_lease() -> datetime:
    return lease(settings.OFFERED_TTL)


def between_tasks_lease(agent: Agent) -> datetime:
    return lease(settings.REWAIT_GRACE_CUSTOM if agent.is_custom else settings.REWAIT_GRACE)


def working_lease(agent: Agent) -> datetime:
    """A custom agent's is long, for nobody watches its process; a remote one's is kept up by its daemon."""
    return lease(settings.WORKING_TTL_CUSTOM if agent.is_custom else settings.HEARTBEAT_TTL)


def longest_lease(status: str, kind: str) -> float:
    """Seconds. A lease further ahead than this can only come from a clock that was set back."""
    if status == AgentStatus.WORKING:
        return max(settings.WORKING_TTL_CUSTOM if kind == "custom" else settings.HEARTBEAT_TTL, settings.OFFERED_TTL)
    return max(settings.HEARTBEAT_TTL, settings.REWAIT_GRACE_CUSTOM if kind == "custom" else settings.REWAIT_GRACE)
