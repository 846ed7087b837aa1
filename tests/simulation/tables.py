"""The declared moves, written down once more from the design, so that a change of the models alone does not go unnoticed."""

LIVE = {"ready", "working"}
AGENT: dict[str, tuple[set[str], set[str]]] = {
    "join": ({"offline", "ready", "working", "restarting", "dead", "dead_failed_revive"}, {"ready"}),
    "resume": ({"dead"}, LIVE),
    "claim_task": ({"ready"}, {"working"}),
    "task_complete": ({"working"}, {"ready"}),
    "task_released": ({"working"}, {"ready"}),
    "leave": ({"ready", "working", "restarting", "dead", "dead_failed_revive"}, {"offline"}),
    "heartbeat_expired": (LIVE, {"dead"}),
    "process_exited": (LIVE, {"dead"}),
    "restart_initiated": ({"offline", "dead", "dead_failed_revive", *LIVE}, {"restarting"}),
    "restart_exhausted": ({"restarting", "dead", "offline"}, {"dead_failed_revive"}),
    "restart_expired": ({"restarting"}, {"dead"}),
    "cleanup": ({"dead", "dead_failed_revive"}, {"offline"}),
}
HELD = {"acknowledged", "in_progress"}
ACTIVE = {"pending", *HELD}
OPEN_ENDED = {"backlog", "queued", *ACTIVE, "pending_user_review", "failed"}
TASK: dict[str, tuple[set[str], set[str]]] = {
    "move_to_queue": ({"backlog"}, {"pending", "queued"}),
    "promote": ({"queued"}, {"pending"}),
    "claim_task": ({"pending"}, {"acknowledged"}),
    "start_task": ({"acknowledged"}, {"in_progress"}),
    "resume_task": ({"pending"}, HELD),
    "complete_task": (HELD, {"completed", "pending_user_review"}),
    "approve": ({"pending_user_review"}, {"completed"}),
    "send_back": ({"pending_user_review"}, {"pending", "queued"}),
    "recover_stuck_acknowledged": ({"acknowledged"}, {"pending"}),
    "recover_orphaned": ({"in_progress"}, {"pending"}),
    "reset": (HELD, {"pending"}),
    "fail_task": (HELD, {"failed"}),
    "retry": ({"failed"}, {"pending", "queued"}),
    "cancel_task": (OPEN_ENDED, {"closed"}),
    "force_complete": (OPEN_ENDED, {"completed"}),
    "reopen": ({"completed", "closed"}, {"pending_user_review"}),
}
BEFORE_END = {"validating", "ready", "preparing", "running"}
RUN: dict[str, tuple[set[str], set[str]]] = {
    "validated": ({"validating"}, {"ready"}),
    "prepare": ({"ready"}, {"preparing"}),
    "launch": ({"preparing"}, {"running"}),
    "abort": (BEFORE_END, {"aborting"}),
    "finish": ({"running"}, {"completed"}),
    "aborted": ({"aborting"}, {"completed"}),
    "timed_out": ({"aborting"}, {"failed"}),
    "fail": ({*BEFORE_END, "aborting"}, {"failed"}),
}
IN_FLIGHT = {"pending", "dispatched"}
COMMAND: dict[str, tuple[set[str], set[str]]] = {
    "dispatch": ({"pending"}, {"dispatched"}),
    "complete": (IN_FLIGHT, {"completed"}),
    "fail": (IN_FLIGHT, {"failed"}),
    "cancel": (IN_FLIGHT, {"cancelled"}),
    "expire": (IN_FLIGHT, {"expired"}),
}
MACHINE: dict[str, tuple[set[str], set[str]]] = {
    "connect": ({"unresponsive", "disconnected"}, {"connected"}),
    "miss": ({"connected"}, {"unresponsive"}),
    "disconnect": ({"connected", "unresponsive"}, {"disconnected"}),
}
TABLES = {"agent": AGENT, "task": TASK, "run": RUN, "command": COMMAND, "machine": MACHINE}
FIRST = {"agent": "offline", "machine": "disconnected"}  # those whose creation is not a move of its own
