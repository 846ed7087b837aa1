"""Very many agents at work, made at once: rooms, machines with a token, agents that hold a task, a living run for each.

Runs in a process of its own, on the database of the server under test: `python -m bench.population WANTED`, as JSON.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any


@dataclass(frozen=True)
class Wanted:
    machines: int
    per_machine: int
    waiting: int
    rooms: int


def main() -> None:
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
    django.setup()
    asked = json.loads(sys.argv[1])
    print(json.dumps(verdict() if asked == "verdict" else populate(Wanted(**asked))))


def populate(wanted: Wanted) -> dict[str, Any]:
    """Names, tokens and runs, as the clients need them."""
    machines = make_machines(wanted.machines)
    runs: dict[int, list[dict[str, Any]]] = {machine.pk: [] for machine, _ in machines}
    waiting: list[tuple[str, str]] = []
    for number in range(wanted.rooms):
        here = [machines[place % wanted.machines][0] for place in range(number, wanted.machines * wanted.per_machine, wanted.rooms)]
        room, roles = make_room(number, remote=len(here), waiting=len(range(number, wanted.waiting, wanted.rooms)))
        for run in make_agents(room, here):
            runs[run.machine_id].append({"run": run.pk, "agent": run.agent_id, "generation": 1, "state": "running", "pid": run.pid})
        waiting += [(room.slug, role) for role in roles]
    give_leases()
    told = [{"name": machine.name, "token": secret, "runs": runs[machine.pk]} for machine, secret in machines]
    return {"machines": told, "waiting": waiting}


def make_machines(count: int) -> list[tuple[Any, str]]:
    from django.contrib.auth.models import User

    from chatroom.models import Token, TokenKind
    from machines.models import Machine

    owner, made = User.objects.filter(is_superuser=True).earliest("pk"), []
    for number in range(count):
        machine = Machine.objects.create(name=f"machine-{number}", owner=owner)
        made.append((machine, Token.objects.issue(kind=TokenKind.MACHINE, name=machine.name, subject_id=machine.pk)[1]))
    return made


def make_room(number: int, *, remote: int, waiting: int) -> tuple[Any, list[str]]:
    """The room, and the roles of those who will wait for work in it."""
    from django.contrib.auth.models import User

    from agents.models import Agent
    from chatroom.models import MemberRole, Membership, Room

    roles = [f"w{index}" for index in range(waiting)]
    room = Room.objects.create(slug=f"room-{number}", name=f"Room {number}", team=[f"r{index}" for index in range(remote)] + roles)
    Membership.objects.create(room=room, user=User.objects.filter(is_superuser=True).earliest("pk"), role=MemberRole.OWNER)
    Agent.objects.bulk_create(Agent(room=room, role=role) for role in roles)
    return room, roles


def make_agents(room: Any, machines: list[Any]) -> list[Any]:
    """One for each machine given, at work, and its process has joined. Returns their runs."""
    from django.db import transaction
    from django.utils.timezone import now

    from agents.models import Agent, Incarnation
    from machines.models import Placement, Run

    at_work = {"kind": "remote", "status": "working", "lease_expires_at": now() + timedelta(seconds=80), "last_seen_at": now()}
    with transaction.atomic():
        agents = Agent.objects.bulk_create(Agent(room=room, role=f"r{index}", **at_work) for index in range(len(machines)))
        joined = {"generation": 1, "state": "running", "harness": "bench", "started_at": now(), "joined_at": now()}
        runs = Run.objects.bulk_create(
            Run(agent=agent, machine=machine, request=f"wish-{agent.pk}", pid=agent.pk, **joined)
            for agent, machine in zip(agents, machines, strict=True)
        )
        Placement.objects.bulk_create(
            Placement(agent=run.agent, machine=run.machine, harness="bench", generation=1, desired_state="running", current_run=run)
            for run in runs
        )
        for run in runs:
            run.agent.incarnation = run.incarnation
        Agent.objects.bulk_update(agents, ["incarnation"], batch_size=100)
        Incarnation.objects.bulk_create(Incarnation(agent=run.agent, key=run.incarnation) for run in runs)
        give_tasks(room, agents)
    return runs


def give_tasks(room: Any, agents: list[Any]) -> None:
    from django.utils.timezone import now

    from agents.models import Claim
    from chatroom.models import Message, Task

    messages = Message.objects.bulk_create(Message(room=room, kind="chat", sender="alice", text="do it") for _ in agents)
    tasks = Task.objects.bulk_create(
        Task(room=room, message=message, chain=message, assigned_role=agent.role, status="in_progress", title="do it", attempt=1)
        for agent, message in zip(agents, messages, strict=True)
    )
    held = {"attempt": 1, "round": 1, "delivered_at": now(), "started_at": now()}
    Claim.objects.bulk_create(
        Claim(task=task, agent=agent, incarnation=agent.incarnation, **held) for task, agent in zip(tasks, agents, strict=True)
    )


def give_leases() -> None:
    """From now on somebody has to vouch."""
    from django.conf import settings
    from django.utils.timezone import now

    from agents.models import Agent

    Agent.objects.filter(status="working").update(lease_expires_at=now() + timedelta(seconds=settings.HEARTBEAT_TTL))


def verdict() -> dict[str, float]:
    """Who is not alive, also who only was not for a while, and how close it was for the others."""
    from django.db.models import Min
    from django.utils.timezone import now

    from agents.models import Agent
    from chatroom.models import Event, Pulse

    live = Agent.objects.live()
    shortest = live.aggregate(shortest=Min("lease_expires_at"))["shortest"]
    return {
        "not_live": Agent.objects.count() - live.count(),
        "overdue": live.filter(lease_expires_at__lt=now()).count(),
        "expired": Event.objects.filter(trigger="heartbeat_expired").count(),
        "machines_away": Event.objects.filter(subject="machine", trigger__in=["miss", "disconnect"]).count(),
        "shortest": (shortest - now()).total_seconds() if shortest else 0.0,
        "quiet_left": (Pulse.objects.get(pk=1).quiet_until - now()).total_seconds(),
    }


def ask(asked: Wanted | str, *, environment: dict[str, str]) -> Any:
    """In a process of its own: here nothing of Django is loaded."""
    import subprocess

    words = json.dumps(asked if isinstance(asked, str) else asdict(asked))
    answer = subprocess.run(
        [sys.executable, "-m", "bench.population", words], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(answer.stdout)


if __name__ == "__main__":
    main()
