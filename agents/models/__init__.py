from .agent import Agent, AgentKind, AgentStatus, Incarnation, run_incarnation
from .claim import Claim, Outcome

__all__ = ["Agent", "AgentKind", "AgentStatus", "Claim", "Incarnation", "Outcome", "run_incarnation"]
