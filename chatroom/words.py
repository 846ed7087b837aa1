"""Events in words, for the people who read a room."""

from .models import Event

# What follows the name of the thing; {actor} did it.
WORDS = {
    "task": {
        "create": "created by {actor}",
        "move_to_queue": "moved to the queue by {actor}",
        "promote": "its turn has come",
        "claim_task": "claimed by {actor}",
        "deliver": "delivered to {actor}",
        "start_task": "started by {actor}",
        "resume_task": "taken up again by {actor}",
        "complete_task": "completed by {actor}",
        "approve": "approved by {actor}",
        "send_back": "sent back by {actor}",
        "recover_stuck_acknowledged": "released: it was never started",
        "recover_orphaned": "released: its holder is gone",
        "reset": "reset by {actor}",
        "fail_task": "failed",
        "retry": "tried again by {actor}",
        "cancel_task": "closed by {actor}",
        "force_complete": "completed by {actor}, without the agent",
        "reopen": "opened again by {actor}",
    },
    "agent": {
        "join": "joined",
        "resume": "came back",
        "claim_task": "took a task",
        "task_complete": "completed its task",
        "task_released": "its task was taken back",
        "leave": "stopped",
        "heartbeat_expired": "its lease ran out",
        "process_exited": "its process ended",
        "restart_initiated": "starting",
        "restart_exhausted": "every attempt failed",
        "restart_expired": "did not come up in time",
        "cleanup": "dismissed by {actor}",
        "configure": "configured by {actor}",
    },
}


def describe_event(event: Event) -> str:
    """`claimed by builder`, `sent back by alice: the test is missing`."""
    words = WORDS.get(event.subject, {}).get(event.trigger, f"{event.trigger.replace('_', ' ')} by {{actor}}")
    said = words.replace("{actor}", event.actor)
    if event.reason.startswith(said):
        return event.reason
    return f"{said}: {event.reason}" if event.reason and event.reason not in said else said
