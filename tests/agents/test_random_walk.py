"""Anything in any order: people, programs and the sweep act at random, and after every step the invariants hold."""

import random
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, Claim
from agents.services import (
    abandon_offer,
    complete_task,
    confirm_delivery,
    dismiss_agent,
    fail_task,
    handoff,
    leave_agent,
    report_progress,
    start_task,
)
from chatroom.errors import ChatroomError
from chatroom.models import Event, Pulse, Room, Task, TaskStatus
from chatroom.models.task import ACTIVE, HELD
from chatroom.services.messages import add_backlog_item, send_message
from chatroom.services.tasks import TASK_ACTS
from chatroom.sweep import sweep
from tests.agents.playing import Program, everything
from tests.factories import make_room, principal_of

pytestmark = pytest.mark.django_db
STEPS = 100


class Walk:
    """One room, the programs ever started in it, and a source of chance."""

    def __init__(self, room: Room, user: User, seed: int) -> None:
        self.room, self.user, self.chance = room, user, random.Random(seed)
        self.programs: list[Program] = []
        self.claims: list[str] = []

    def step(self) -> str:
        name, act = self.chance.choice(ACTS)
        act(self)
        return name

    def role(self) -> str:
        return self.chance.choice(self.room.team)

    def program(self) -> Program:
        if not self.programs:
            self.start()
        return self.chance.choice(self.programs[-6:])

    def claim(self) -> str:
        return self.chance.choice(self.claims[-4:]) if self.claims else "c_none"

    def send(self) -> None:
        send_message(self.room.pk, text="do it", to=self.chance.choice(["", self.role()]), author=self.user)

    def add_item(self) -> None:
        add_backlog_item(self.room.pk, text="one day", to=self.role(), author=self.user, priority=self.chance.randint(-1, 1))

    def start(self) -> None:
        self.programs.append(Program(self.room, self.user, self.role()).connect())

    def reconnect(self) -> None:
        self.program().connect()

    def look(self) -> None:
        program = self.program()
        if offer := program.look():
            self.claims.append(offer.claim)
            if self.chance.random() < 0.8:
                confirm_delivery(offer.claim, room_id=self.room.pk, incarnation=program.incarnation)

    def renew(self) -> None:
        self.program().renew()

    def drop(self) -> None:
        self.program().end(planned=self.chance.random() < 0.5)
        abandon_offer(self.claim(), room_id=self.room.pk, reason="its socket ended")

    def leave(self) -> None:
        program = self.program()
        incarnation = self.chance.choice([None, program.incarnation])
        leave_agent(self.room.pk, role=program.role, actor="alice", incarnation=incarnation)

    def dismiss(self) -> None:
        dismiss_agent(self.room.pk, role=self.role(), actor="alice")

    def work(self) -> None:
        acts: list[Callable[..., Any]] = [start_task, start_task, report_progress, complete_task, handoff, handoff, fail_task]
        act = self.chance.choice(acts)
        fields: dict[str, Any] = {} if act is start_task else {"text": "words"}
        if act is handoff:
            fields["next_role"] = self.chance.choice([*self.room.team, "user", "nobody"])
        act(self.room.pk, self.claim(), principal=principal_of(self.user), **fields)

    def decide(self) -> None:
        tasks = list(Task.objects.filter(room=self.room).order_by("-pk").values_list("pk", flat=True)[:8])
        act = self.chance.choice(list(TASK_ACTS))
        TASK_ACTS[act](self.room.pk, task_id=self.chance.choice([*tasks, 0]), actor="alice", reason=self.chance.choice(["", "because"]))

    def die(self) -> None:
        """A lease runs out, and the sweep finds it."""
        late = Agent.objects.filter(room=self.room, role=self.role(), lease_expires_at__isnull=False)
        late.update(lease_expires_at=now() - timedelta(seconds=1))
        Pulse.objects.update(beat_at=now())
        sweep()


ACTS: list[tuple[str, Callable[[Walk], None]]] = [
    (name, getattr(Walk, name))
    for name, weight in {
        "send": 3, "add_item": 1, "start": 2, "reconnect": 2, "look": 6, "renew": 2, "drop": 1, "leave": 1, "dismiss": 1, "work": 8,
        "decide": 4, "die": 2,
    }.items()
    for _ in range(weight)
]  # fmt: skip


def check(room: Room) -> None:
    tasks, agents = list(Task.objects.filter(room=room)), list(Agent.objects.filter(room=room))
    open_claims = {claim.task_id: claim for claim in Claim.objects.open()}
    working = {agent.pk for agent in agents if agent.status == AgentStatus.WORKING}
    assert {task.pk for task in tasks if task.status in HELD} == set(open_claims)
    assert {claim.agent_id for claim in open_claims.values()} == working
    for agent in agents:
        assert (agent.lease_expires_at is not None) == agent.is_live
    for role in room.team:
        waiting = [task for task in tasks if task.assigned_role == role and task.status == TaskStatus.QUEUED]
        active = [task for task in tasks if task.assigned_role == role and task.status in ACTIVE]
        assert len(active) <= 1
        assert active or not waiting, f"the queue of {role} stands still"
    check_events("task", {task.pk: str(task.status) for task in tasks})
    check_events("agent", {agent.pk: str(agent.status) for agent in agents})


def check_events(subject: str, statuses: dict[int, str]) -> None:
    """The events of each tell its whole way: one for each change, the last one to where it is."""
    moves: dict[int, list[tuple[str, str]]] = {}
    events = Event.objects.filter(subject=subject).exclude(to_state="").order_by("pk")
    for pk, before, after in events.values_list("subject_id", "from_state", "to_state"):
        moves.setdefault(pk, []).append((before, after))
    for pk, way in moves.items():
        assert all(first[1] == second[0] for first, second in pairwise(way))
        assert way[-1][1] == statuses[pk]
    still = set(statuses) - set(moves)
    assert all(statuses[pk] == "offline" for pk in still)


@pytest.mark.parametrize("fail_fast", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_the_invariants_hold(alice: User, pulse: Pulse, seed: int, fail_fast: bool) -> None:
    room = make_room(alice, name="Walk", team="squad", fail_fast=fail_fast)
    walk, done, refused = Walk(room, alice, seed), 0, 0
    for number in range(STEPS):
        before = everything(but=Agent)
        try:
            walk.step()
            done += 1
        except ChatroomError:
            refused += 1
            assert everything(but=Agent) == before, f"seed {seed}, step {number}: a refusal changed something"
        check(room)
    assert done > STEPS / 3
    assert refused > 5
    assert Task.objects.filter(status=TaskStatus.COMPLETED).exists()
