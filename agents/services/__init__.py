from .claims import ClaimLost, abandon_offer, confirm_delivery, offer_next, release_claim
from .presence import Hello, Joined, disconnect_agent, dismiss_agent, join_agent, leave_agent, renew_lease, renew_leases, show_life
from .prompts import build_prompt, start_command
from .work import complete_task, fail_task, handoff, report_progress, start_task

__all__ = [
    "ClaimLost",
    "Hello",
    "Joined",
    "abandon_offer",
    "build_prompt",
    "complete_task",
    "confirm_delivery",
    "disconnect_agent",
    "dismiss_agent",
    "fail_task",
    "handoff",
    "join_agent",
    "leave_agent",
    "offer_next",
    "release_claim",
    "renew_lease",
    "renew_leases",
    "report_progress",
    "show_life",
    "start_command",
    "start_task",
]
