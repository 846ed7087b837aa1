"""Rows as the services would have made them, in any state a test needs."""

import secrets
from typing import Any

from django.contrib.auth.models import User
from django.utils.timezone import now

from agents import leases
from agents.models import Agent, AgentKind, AgentStatus, Claim, Incarnation
from agents.models.agent import LIVE
from agents.services.presence import Hello, Joined, join_agent
from chatroom.models import MemberRole, Membership, Message, Room, Task, TaskStatus, Token, TokenKind
from chatroom.principals import Principal
from chatroom.services.rooms import create_room
from machines.models import Desired, Machine, MachineStatus, Placement, Run, RunState
from machines.models.run import UNFINISHED


def make_user(username: str) -> User:
    return User.objects.create_user(username, password="correct-horse")


def make_room(owner: User, *, name: str = "Demo", team: str = "pair", fail_fast: bool = False, **members: User) -> Room:
    room = create_room(name, team=team, owner=owner, fail_fast=fail_fast)
    for role, user in members.items():
        Membership.objects.create(room=room, user=user, role=MemberRole(role))
    return room


def make_agent(room: Room, role: str = "builder", *, status: str = AgentStatus.READY, lease: float = 90, **fields: Any) -> Agent:
    """The room's agent of this role, put into a state directly: for the states that no short way leads to."""
    incarnation = fields.pop("incarnation", secrets.token_hex(8))
    agent = Agent.objects.get(room=room, role=role)
    Incarnation.objects.filter(agent=agent, ended_at=None).update(ended_at=now())
    if status in [*LIVE, AgentStatus.DEAD]:
        Incarnation.objects.create(agent=agent, key=incarnation)
        fields.setdefault("incarnation", incarnation)
        fields.setdefault("last_seen_at", now())
    if status in LIVE:
        fields.setdefault("lease_expires_at", leases.lease(lease))
    Agent.objects.filter(pk=agent.pk).update(status=status, **fields)  # a test's set-up, not an act
    return Agent.objects.get(pk=agent.pk)


def make_message(room: Room, text: str = "do it", *, sender: str = "alice") -> Message:
    return Message.objects.create(room=room, sender=sender, text=text)


def make_task(room: Room, role: str = "builder", *, status: str = TaskStatus.PENDING, text: str = "do it", **fields: Any) -> Task:
    message = fields.pop("message", None) or make_message(room, text)
    fields.setdefault("chain", message)
    return Task.objects.create(room=room, message=message, assigned_role=role, status=status, title=text[:120], **fields)


def make_claim(task: Task, agent: Agent, **fields: Any) -> Claim:
    fields.setdefault("incarnation", agent.incarnation)
    fields.setdefault("attempt", task.attempt or 1)
    return Claim.objects.create(task=task, agent=agent, round=task.round, **fields)


def make_held_task(room: Room, role: str = "builder", *, started: bool = True, **fields: Any) -> tuple[Task, Agent, Claim]:
    """A working agent with its task."""
    agent = make_agent(room, role, status=AgentStatus.WORKING, lease=fields.pop("lease", 3600))
    status = TaskStatus.IN_PROGRESS if started else TaskStatus.ACKNOWLEDGED
    task = make_task(room, role, status=status, attempt=1, **fields)
    return task, agent, make_claim(task, agent, delivered_at=now(), started_at=now() if started else None)


def principal_of(user: User) -> Principal:
    return Principal(0, TokenKind.PERSON, user, None, "", None)


def token_of(user: User) -> str:
    return Token.objects.issue(kind=TokenKind.PERSON, name="test", user=user)[1]


def agent_token(room: Room, role: str) -> str:
    return Token.objects.issue(kind=TokenKind.AGENT, name="test", room=room, role=role, subject_id=1)[1]


def join(room: Room, user: User, *, role: str = "builder", incarnation: str = "", joined: bool = False) -> tuple[Joined, Hello]:
    hello = Hello(role=role, incarnation=incarnation or secrets.token_hex(8), connection=secrets.token_hex(8), joined=joined)
    return join_agent(room, hello=hello, principal=principal_of(user)), hello


def make_machine(owner: User, name: str = "laptop-7", *, status: str = MachineStatus.CONNECTED, **fields: Any) -> Machine:
    """A machine whose daemon has introduced itself; connected, with a socket, unless told otherwise."""
    harness = {"name": "demo", "version": "1.0", "models": [], "ok": True, "error": ""}
    fields = {"harnesses": [harness], "allow_dirs": ["/home/alice/src"], "last_seen_at": now(), "version": "0.2.0", **fields}
    if status != MachineStatus.DISCONNECTED:
        fields = {"instance": "instance-1", "connection": "socket-1", **fields}
    return Machine.objects.create(owner=owner, name=name, status=status, **fields)


def make_placement(machine: Machine, agent: Agent, *, desired: str = Desired.ON_DEMAND, generation: int = 0, **fields: Any) -> Placement:
    """Makes the agent a remote one, on this machine."""
    Agent.objects.filter(pk=agent.pk).update(kind=AgentKind.REMOTE)
    fields = {"harness": "demo", "desired_by": "alice", **fields}
    return Placement.objects.create(machine=machine, agent=agent, desired_state=desired, generation=generation, **fields)


def make_run(placement: Placement, *, state: str = RunState.RUNNING, joined: bool = True, **fields: Any) -> Run:
    """The agent's current run; joined: the agent's incarnation is the run's, where it has one."""
    defaults = {"generation": placement.generation, "machine": placement.machine, "request": secrets.token_hex(16), "harness": "demo"}
    if state not in UNFINISHED:
        defaults |= {"ended_at": now()}
    run = Run.objects.create(agent=placement.agent, state=state, **{**defaults, **fields})
    Placement.objects.filter(pk=placement.pk).update(current_run=run)
    if joined:
        Run.objects.filter(pk=run.pk).update(joined_at=now())
        Agent.objects.filter(pk=placement.agent_id).exclude(incarnation="").update(incarnation=run.incarnation)
        Incarnation.objects.filter(agent=placement.agent_id, ended_at=None).update(key=run.incarnation)
    return Run.objects.select_related("agent__room", "machine").get(pk=run.pk)
