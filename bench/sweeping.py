"""`python -m bench.sweeping`: one sweep among very many agents and old tasks, 100 of them due; beside the same at a tenth of the size.

On PostgreSQL, in a database of its own (BENCH_DATABASE_URL names the server). Prints seconds for both sizes: flat is the aim.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from bench.server import REDIS, Database

DUE = 100
ROOM_AGENTS = 100


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sweeping", description=__doc__)
    parser.add_argument("--agents", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        measure(options.agents, options.tasks, rounds=options.rounds)
        return
    print(f"one sweep, {DUE} agents due, each holding a task; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for share in (10, 1):
        with Database() as database, tempfile.TemporaryDirectory(prefix="chatroom-bench-") as home:
            environment = os.environ | {"DATABASE_URL": database.url, "REDIS_URL": REDIS, "CHATROOM_HOME": home}
            sizes = [f"--agents={options.agents // share}", f"--tasks={options.tasks // share}", f"--rounds={options.rounds}"]
            subprocess.run([sys.executable, "-m", "bench.sweeping", "--inside", *sizes], env=environment, check=True)


def measure(agents: int, tasks: int, *, rounds: int) -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
    django.setup()
    from django.core.management import call_command

    from chatroom.sweep import sweep

    call_command("migrate", verbosity=0)
    begun = time.perf_counter()
    load(agents, tasks)
    loaded = time.perf_counter() - begun
    keep_alive()
    sweep()  # the first round settles what the load left behind
    spans = [timed_sweep() for _ in range(rounds)]
    idle = statistics.median(timed(sweep) for _ in range(rounds))
    print(
        f"{agents:>9,} agents {tasks:>10,} old tasks   {DUE} due: median {statistics.median(spans):.3f} s, "
        f"max {max(spans):.3f} s   nothing due: {idle:.4f} s   (loaded in {loaded:.0f} s)",
        flush=True,
    )


def timed_sweep() -> float:
    keep_alive()
    make_due()
    return timed(sweep_and_check)


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def sweep_and_check() -> None:
    from chatroom.sweep import sweep

    done = sweep()
    if done["expire_leases"] != DUE:
        raise RuntimeError(f"the sweep expired {done['expire_leases']} leases: expected {DUE}")


def load(agents: int, tasks: int) -> None:
    """Rooms of 100 agents, all ready with a valid lease; every task long finished, but for those of `make_due`."""
    from django.db import connection

    rooms = max(agents // ROOM_AGENTS, 1)
    with connection.cursor() as cursor:
        for statement in LOAD:
            cursor.execute(statement, {"rooms": rooms, "agents": agents, "tasks": tasks, "per_room": ROOM_AGENTS})
        cursor.execute("ANALYZE")


def keep_alive() -> None:
    """A web process beats, and everybody has just renewed."""
    from datetime import timedelta

    from django.utils.timezone import now

    from agents.models import Agent
    from chatroom.models import Pulse

    Agent.objects.filter(status="ready").update(lease_expires_at=now() + timedelta(seconds=80))
    Pulse.objects.update_or_create(pk=1, defaults={"beat_at": now(), "quiet_until": now()})


def make_due() -> None:
    """DUE agents in as many rooms hold a task, and their leases are over."""
    from datetime import timedelta

    from django.utils.timezone import now

    from agents.models import Agent, Claim
    from chatroom.models import Message, Task

    for agent in Agent.objects.filter(status="ready").order_by("room_id", "pk").distinct("room_id")[:DUE]:
        message = Message.objects.filter(room_id=agent.room_id).latest("pk")
        Task.objects.filter(room_id=agent.room_id, assigned_role=agent.role, status__in=["pending", "in_progress"]).delete()
        task = Task.objects.create(
            room_id=agent.room_id, message=message, chain=message, assigned_role=agent.role, status="in_progress", title="due", attempt=1
        )
        Claim.objects.create(task=task, agent=agent, incarnation=agent.incarnation, attempt=1, round=1)
        over = {"status": "working", "lease_expires_at": now() - timedelta(seconds=1)}
        Agent.objects.filter(pk=agent.pk).update(**over)


LOAD = [
    """INSERT INTO chatroom_room (slug, name, team, fail_fast, created_at)
    SELECT 'room-' || n, 'Room ' || n, '["r0"]', false, now() FROM generate_series(1, %(rooms)s) n""",
    """INSERT INTO agents_agent (room_id, role, kind, status, status_since, incarnation, connection, accepts_work, error_message,
        lease_expires_at, last_seen_at, waiting_since)
    SELECT 1 + (n %% %(rooms)s), 'r' || n / %(rooms)s, 'custom', 'ready', now(), 'i' || n, '', true, '', now(), now(), now()
    FROM generate_series(0, %(agents)s - 1) n""",
    """INSERT INTO chatroom_message (room_id, kind, sender, "to", text, created_at)
    SELECT 1 + (n %% %(rooms)s), 'chat', 'alice', '', 'do it', now() - interval '1 day' FROM generate_series(0, %(tasks)s - 1) n""",
    """INSERT INTO chatroom_task (room_id, message_id, chain_id, assigned_role, status, status_since, origin, title, priority, attempt,
        crashes, round, failure_reason, created_at)
    SELECT room_id, id, id, 'r' || id %% %(per_room)s, CASE WHEN id %% 50 = 0 THEN 'failed' ELSE 'completed' END, created_at, 'message',
        'do it', 0, 1, 0, 1, '', created_at FROM chatroom_message""",
]

if __name__ == "__main__":
    main()
