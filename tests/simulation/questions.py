"""What the checker asks the database."""

from typing import Any

from django.db import connection

from agents.models import Agent
from chatroom.prepared import Prepared

from .tables import LIVE

# Raw, because they are asked after every act: the ORM would cost more than what it looks at.
EVENTS = (
    'SELECT id, subject, subject_id, role, "trigger", from_state, to_state, actor, reason, room_id '
    "FROM chatroom_event WHERE id > %s ORDER BY id"
)
AGENTS = "SELECT id, role, status, incarnation, lease_expires_at IS NULL FROM agents_agent WHERE room_id = %s"
TASKS = (
    "SELECT id, assigned_role, status, attempt FROM chatroom_task "
    "WHERE room_id = %s AND status IN ('queued', 'pending', 'acknowledged', 'in_progress')"
)
CLAIMS = (
    "SELECT task_id, agent_id, claim.incarnation, attempt FROM agents_claim claim JOIN agents_agent agent ON agent.id = agent_id "
    "WHERE agent.room_id = %s AND ended_at IS NULL"
)
STARTS = "SELECT agent_id FROM machines_command WHERE state IN ('pending', 'dispatched') AND act IN ('start_agent', 'restart_agent')"
RUNS = "SELECT id FROM machines_run WHERE state NOT IN ('completed', 'failed')"
REMOTE = "SELECT role, incarnation FROM agents_agent WHERE kind = 'remote' AND status IN ('ready', 'working')"
CUSTOM = "SELECT id FROM agents_agent WHERE id = %s AND kind = 'custom'"
PLACED_THERE = "SELECT id FROM machines_placement WHERE id = %s AND machine_id = %s"
WANTED = (
    "SELECT agent.id, agent.role, desired_state, placement.machine_id = run.machine_id FROM machines_run run "
    "JOIN agents_agent agent ON agent.id = run.agent_id JOIN machines_placement placement ON placement.agent_id = agent.id "
    "WHERE run.id = %s"
)
OUTDATED_START = (
    "SELECT command.generation FROM machines_command command JOIN machines_run run ON run.agent_id = command.agent_id "
    "WHERE command.id = %s AND act IN ('start_agent', 'restart_agent') AND command.state IN ('pending', 'dispatched') "
    "AND run.generation >= command.generation"
)
LATER_CLAIM = (
    "SELECT claim.attempt, claim.task_id FROM agents_claim claim JOIN agents_claim later ON later.task_id = claim.task_id "
    "WHERE claim.key = %s AND later.attempt > claim.attempt"
)
ROLES = "SELECT slug, role, kind FROM agents_agent agent JOIN chatroom_room room ON room.id = room_id ORDER BY agent.id"
UNDONE = "SELECT id FROM chatroom_task WHERE status IN ('queued', 'pending', 'acknowledged', 'in_progress')"
LATE = Prepared[Agent](lambda time: Agent.objects.filter(status__in=LIVE, lease_expires_at__lt=time).values_list("role", "status"))
DELIVERED = "SELECT id FROM agents_claim WHERE key = %s AND delivered_at IS NOT NULL"
IDLE = "SELECT role, incarnation FROM agents_agent WHERE status = 'ready' AND waiting_since IS NULL ORDER BY id"


def rows(sql: str, *values: int | str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()
