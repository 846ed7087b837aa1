"""The sweep costs what is due, not what there is: 100,000 agents, 100,000 tasks. And a room's past costs nothing."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils.timezone import now

from agents import sweep as agents_sweep
from agents.models import Agent
from agents.services import handoff, report_progress
from chatroom import sweep as rooms_sweep
from chatroom.models import Event, Pulse, Room, Task
from chatroom.services.messages import send_message
from chatroom.services.tasks import cancel_task
from machines import sweep as machines_sweep
from tests.agents.plans import Statement, counted_steps, explain, is_sqlite, recorded
from tests.agents.playing import take
from tests.factories import make_room, principal_of

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(300)]

MANY, DUE = 100_000, 20
# Each step that looks for something, and the index that finds it.
INDEX_OF: dict[Callable[[], int], str] = {
    agents_sweep.cut_long_leases: "agent_lease",
    agents_sweep.expire_leases: "agent_lease",
    agents_sweep.look_sooner: "task_look",
    agents_sweep.look_at_tasks: "task_look",
    agents_sweep.clean_up_dead_custom_agents: "agent_dead_custom",
    agents_sweep.forget_old_incarnations: "incarnation_ended",
    rooms_sweep.send_jobs_again: "job_waiting",
    rooms_sweep.forget_old_answers: "idempotency_created",
    machines_sweep.expire_restarts: "agent_restarting",
}
ONE_ROW = {agents_sweep.give_back_missed_time, rooms_sweep.cut_quiet_time}
SEQUENCE = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s)"
# Of ten agents two work, two are ready, two dead, four offline; the tasks are held, pending (and people told), or done.
LIVELY = ["working", "working", "ready", "ready", "dead", "dead"]
STATUS_OF_AGENT = "CASE i %% 10 " + " ".join(f"WHEN {digit} THEN '{status}'" for digit, status in enumerate(LIVELY))
STATUS_OF_AGENT += " ELSE 'offline' END"
HELD = "WHEN 0 THEN 'in_progress' WHEN 1 THEN 'acknowledged'"
STATUS_OF_TASK = f"CASE i %% 10 {HELD} WHEN 4 THEN 'pending' WHEN 5 THEN 'pending' ELSE 'completed' END"


def run(sql: str, *values: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def insert(table: str, number: int, **columns: str | tuple[str, Any]) -> None:
    """Rows 1 to `number`; each column an expression of i, or an expression with its value."""
    values = [value[1] for value in columns.values() if isinstance(value, tuple)]
    expressions = ", ".join(value[0] if isinstance(value, tuple) else value for value in columns.values())
    start = f"INSERT INTO {table} ({', '.join(columns)}) {SEQUENCE} SELECT {expressions} FROM n"
    run(start, number, *values)


def load(room: Room) -> None:
    """As many of everything, and nothing of it due."""
    time, later, message = now(), agents_sweep.leases.lease(85), room.messages.create(sender="alice", text="do it")
    # Our own sequence of ids: the rows refer to each other by it. The team's own agents are not counted.
    Agent.objects.all().delete()
    lease = f"CASE WHEN {STATUS_OF_AGENT} IN ('ready', 'working') THEN {'%s' if is_sqlite() else 'CAST(%s AS timestamptz)'} END"
    look = f"CASE WHEN {STATUS_OF_TASK} = 'acknowledged' THEN {'%s' if is_sqlite() else 'CAST(%s AS timestamptz)'} END"
    insert(
        "agents_agent", MANY, id="i", room_id=("%s", room.pk), role="'role-' || i", kind="'custom'", status=STATUS_OF_AGENT,
        status_since=("%s", time), incarnation="'key-' || i", connection="''", lease_expires_at=(lease, later), error_message="''",
        accepts_work="true",
    )  # fmt: skip
    insert(
        "chatroom_task", MANY, id="i", room_id=("%s", room.pk), message_id=("%s", message.pk), chain_id=("%s", message.pk),
        assigned_role="'role-' || i", status=STATUS_OF_TASK, status_since=("%s", time), look_at=(look, later), origin="'message'",
        title="'do it'", priority="0", attempt="1", crashes="0", round="1", failure_reason="''", created_at=("%s", time),
    )  # fmt: skip
    insert(
        "agents_claim", MANY // 10, key="'c_' || i", task_id="i * 10", agent_id="i * 10", incarnation="'key-' || i * 10", attempt="1",
        round="1", offered_at=("%s", time), outcome="''", ended_by="''",
    )  # fmt: skip
    insert("agents_incarnation", MANY // 10, agent_id="i", key="'key-' || i", joined_at=("%s", time), ended_at=("%s", time), ended_by="''")
    insert(
        "chatroom_job", MANY // 10, kind="'pass_on_notice'", payload="'{}'", state="'done'", attempts="1", due_at=("%s", time),
        sent_at=("%s", time), created_at=("%s", time), last_error="''",
    )  # fmt: skip
    insert(
        "chatroom_idempotencyrecord", MANY // 10, principal="'user:1'", act="'send_message'", key="'k' || i", body_hash="''",
        status_code="201", answer="'{}'", created_at=("%s", time),
    )  # fmt: skip
    know_the_tables()


def know_the_tables() -> None:
    """As PostgreSQL does by itself in time, and SQLite does not."""
    if not is_sqlite():
        run("ANALYZE")


@pytest.fixture
def crowd(alice: User) -> Room:
    room = make_room(alice, name="Crowd")
    load(room)
    Pulse.objects.create(pk=1)  # beats now: loading may have taken longer than a pulse may be silent
    return room


def make_due(room: Room) -> None:
    """A few of those many."""
    time = agents_sweep.leases.lease(-1)
    working, ready = (Agent.objects.filter(status=status).values_list("pk", flat=True)[:DUE] for status in ("working", "ready"))
    Agent.objects.filter(pk__in=[*working, *ready]).update(lease_expires_at=time)
    acknowledged = Task.objects.filter(status="acknowledged").values_list("pk", flat=True)[DUE : 2 * DUE]
    Task.objects.filter(pk__in=list(acknowledged)).update(look_at=time)


def finding(statements: list[Statement]) -> list[Statement]:
    return [explain(statement) for statement in statements if "chatroom_pulse" not in statement.sql]


def test_every_step_of_the_sweep_is_looked_at_here() -> None:
    ours = {step for step in rooms_sweep.STEPS if step.__module__ in {"chatroom.sweep", "agents.sweep"}}
    assert ours <= set(INDEX_OF) | ONE_ROW


def test_statistics_of_another_time_make_no_difference(crowd: Room) -> None:
    """Leases are always in motion: what the planner knows of them is old, and by then they are all over."""
    Agent.objects.update(status="ready", lease_expires_at=agents_sweep.leases.lease(-60))
    know_the_tables()
    Agent.objects.update(lease_expires_at=agents_sweep.leases.lease(85))
    with recorded() as statements:
        assert agents_sweep.expire_leases() == 0
    for plan in finding(statements):
        assert plan.indexes == {"agent_lease"}, plan
        assert (plan.scans, plan.rows) == ([], 0), plan


def test_a_plan_that_is_kept_reads_no_whole_table(crowd: Room) -> None:
    """A statement that comes again and again is planned once, for values that are not known then."""
    before = rows_of_whole_tables()
    for step in INDEX_OF:
        for _ in range(12):
            assert step() == 0
        assert rows_of_whole_tables() - before < MANY, step.__name__


def rows_of_whole_tables() -> int:
    """SQLite keeps no plans: there the other tests say it all."""
    if is_sqlite():
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(seq_tup_read) FROM pg_stat_xact_user_tables WHERE relname IN ('agents_agent', 'chatroom_task')")
        return int(cursor.fetchone()[0])


def test_the_sweep_costs_what_is_due(crowd: Room) -> None:
    for step, index in INDEX_OF.items():
        with recorded() as statements:
            assert step() == 0
        plans = finding(statements)
        assert plans, step.__name__
        for plan in plans:
            assert index in plan.indexes, f"{step.__name__}: {plan}"
            big = [table for table in plan.scans if not table.startswith("machines_")]  # no machine is here: its tables are empty
            assert (big, plan.rows) == ([], 0), f"{step.__name__}: {plan}"
    idle = measure()
    make_due(crowd)
    busy = measure()
    assert Event.objects.filter(trigger="heartbeat_expired").count() == 2 * DUE
    # Rows on PostgreSQL; on SQLite steps of its machine, of which a look at every agent would take far more than 100,000.
    assert idle < (3_000 if is_sqlite() else 10), idle
    assert busy < (DUE * 8_000 if is_sqlite() else DUE * 200), busy


def measure() -> int:
    """What the rounds of our steps cost: rows touched (PostgreSQL), or steps of the machine (SQLite)."""
    if is_sqlite():
        with counted_steps() as steps:
            for step in INDEX_OF:
                step()
        return steps[0]
    with recorded() as statements:
        for step in INDEX_OF:
            step()
    return sum(explain(statement).rows for statement in statements if statement.sql.startswith("SELECT"))


@pytest.mark.scenario(35)
def test_ten_thousand_finished_tasks_cost_the_room_nothing(alice: User, pulse: Pulse) -> None:
    room = make_room(alice, name="Old", team="pair")
    fill_with_the_past(room, 10_000)
    with recorded() as statements:
        sent = send_message(room.pk, text="one", author=alice)
        second = send_message(room.pk, text="two", author=alice)
        claim = take(room, alice)
        report_progress(room.pk, claim, text="half", principal=principal_of(alice))
        handoff(room.pk, claim, next_role="reviewer", text="done", principal=principal_of(alice))
        handoff(room.pk, take(room, alice, "reviewer"), next_role="user", text="good", principal=principal_of(alice))
        cancel_task(room.pk, task_id=second.task.pk, actor="alice")
    assert Task.objects.get(pk=sent.task.pk).status == "completed"
    assert len(statements) > 50
    for statement in {statement.sql: statement for statement in statements}.values():
        plan = explain(statement)
        big = [table for table in plan.scans if table in {"chatroom_task", "chatroom_message", "chatroom_event", "agents_claim"}]
        assert (big, plan.rows < 100) == ([], True), str(plan)


def fill_with_the_past(room: Room, number: int) -> None:
    time, message = now(), room.messages.create(sender="alice", text="do it")
    agent = Agent.objects.get(room=room, role="builder")
    first = 1_000_000
    insert(
        "chatroom_message", number, id=f"i + {first}", room_id=("%s", room.pk), kind="'chat'", sender="'alice'", **{'"to"': "''"},
        text="'do it'", created_at=("%s", time),
    )  # fmt: skip
    insert(
        "chatroom_task", number, id=f"i + {first}", room_id=("%s", room.pk), message_id=f"i + {first}", chain_id=f"i + {first}",
        assigned_role="'builder'", status="'completed'", status_since=("%s", time), origin="'message'", title="'do it'", priority="0",
        attempt="1", crashes="0", round="1", failure_reason="''", created_at=("%s", time),
    )  # fmt: skip
    insert(
        "agents_claim", number, key="'c_' || i", task_id=f"i + {first}", agent_id=("%s", agent.pk), incarnation="'key'", attempt="1",
        round="1", offered_at=("%s", time), ended_at=("%s", time), outcome="'completed'", ended_by="'builder'",
    )  # fmt: skip
    insert(
        "chatroom_event", number, room_id=("%s", room.pk), subject="'task'", subject_id=f"i + {first}", role="'builder'",
        **{'"trigger"': "'complete_task'"}, from_state="'in_progress'", to_state="'completed'", actor="'builder'", reason="''", data="'{}'",
        created_at=("%s", time),
    )  # fmt: skip
    assert message.pk < first
    know_the_tables()
