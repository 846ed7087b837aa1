"""Is the agent there? Joining, renewing, coming back, leaving."""

import hashlib
import secrets
from dataclasses import dataclass, field

from django.conf import settings
from django.db import transaction
from django.db.models import Case, F, Q, When
from django.db.models.functions import Least
from django.utils.timezone import now

from agents import leases, signals
from agents.models import Agent, AgentKind, AgentStatus, Incarnation, Outcome
from agents.models.agent import LIVE
from chatroom.errors import Invalid, NotAllowed, NotFound, RoleNotYours, Superseded
from chatroom.events import move
from chatroom.gathering import attempted
from chatroom.models import MemberRole, Membership, Room, Task, TaskStatus, Token, TokenKind
from chatroom.prepared import Prepared
from chatroom.principals import Principal
from chatroom.services.rooms import require_role, room_locked

from .claims import agent_locked, announce_pending, lock_agent, release_open_claim, reopen_claim, resumable_claim

LONGEST_INCARNATION = 64


def connection_name(incarnation: str, number: object) -> str:
    """`3f9c0d51aa.000002.6b1e…`: which connection of which start, the latter as its program calls itself; at most 32 characters."""
    start = hashlib.blake2s(incarnation.encode(errors="replace"), digest_size=5).hexdigest()
    count = min(max(number, 0), 999_999) if isinstance(number, int) else 0
    return f"{start}.{count:06d}.{secrets.token_hex(6)}"


def is_older(connection: str, *, than: str) -> bool:
    """Of the same start, and opened before: its words come late."""
    mine, other = connection.split("."), than.split(".")
    return len(mine) == len(other) == 3 and mine[0] == other[0] and mine[1] < other[1]


@dataclass(frozen=True)
class Hello:
    """What a socket presents. `joined`: it has seen a welcome before, so this is a reconnect and may displace nobody."""

    role: str
    incarnation: str
    connection: str
    joined: bool


@dataclass(frozen=True)
class Joined:
    agent_id: int
    room: Room
    role: str
    status: str
    resumed: bool
    token_id: int = 0


def join_agent(room: Room, *, hello: Hello, principal: Principal) -> Joined:
    """A new start of the agent's program takes over; a reconnect of the current one goes on; an older one is told `Superseded`."""
    require_role(room, hello.role)
    if not 0 < len(hello.incarnation) <= LONGEST_INCARNATION:
        raise Invalid(f"incarnation of {len(hello.incarnation)} characters: expected 1 to {LONGEST_INCARNATION}")
    principal.require_speaker(room, hello.role)
    with room_locked(room.pk):
        agent = lock_agent(room.pk, role=hello.role)
        require_right_kind(agent, principal)
        known = Incarnation.objects.filter(agent=agent, key=hello.incarnation).first()
        if known is not None and (known.ended_at or agent.incarnation != hello.incarnation):
            raise Superseded(known.ended_by or f"a newer start of {agent.role} took over")
        if known is not None and is_older(hello.connection, than=agent.connection):
            raise Superseded(f"a newer connection of this start of {agent.role} speaks for it")
        if known is None and hello.joined and agent.is_live:
            raise Superseded(f"another start of {agent.role} is at work")
        resumed = known is not None and revive(agent, actor=agent.role)
        freed = None if known else take_over(agent, hello=hello, actor=principal.name)
        if known is None:
            signals.agent_joined.send(Agent, agent=agent, principal=principal)
        agent.connection, agent.waiting_since, agent.last_seen_at = hello.connection, now(), now()
        if agent.status == AgentStatus.READY:
            agent.lease_expires_at = leases.waiting_lease()
        agent.save()
        announce_pending(freed)
        return Joined(agent.pk, room, agent.role, agent.status, resumed, principal.token_id)


def require_right_kind(agent: Agent, principal: Principal) -> None:
    """A remote role belongs to the run its daemon started; a person in a terminal must not take its work away."""
    if agent.is_custom and principal.user is None:
        raise RoleNotYours(f"{agent.role} is a custom agent now: the token of a run can't speak for it")
    if not agent.is_custom and principal.user is None:
        signals.join_requested.send(Agent, agent=agent, principal=principal)
    if not agent.is_custom and principal.user is not None:
        raise RoleNotYours(
            f"{agent.role} is a remote agent, started by its machine's daemon: to play it in a terminal, make it custom first "
            f"(configure_agent {agent.room} --role {agent.role} --kind custom)"
        )


def take_over(agent: Agent, *, hello: Hello, actor: str) -> Task | None:
    """The join itself. What the older start held is free again, and offered first. Returns that task."""
    note = f"a newer start of {agent.role} took over at {now():%H:%M:%S} UTC"
    end_incarnation(agent, note)
    freed = release_open_claim(agent, outcome=Outcome.SUPERSEDED, actor=actor, reason=note)
    Incarnation.objects.create(agent=agent, key=hello.incarnation)
    move(agent, "join", actor=actor, incarnation=hello.incarnation, lease=leases.waiting_lease())
    return freed


def end_incarnation(agent: Agent, note: str) -> None:
    Incarnation.objects.filter(agent=agent, ended_at=None).update(ended_at=now(), ended_by=note)


def revive(agent: Agent, *, actor: str) -> bool:
    """A dead agent whose own incarnation shows life is back at once, with its claim if nobody claimed since. False if it was not dead."""
    if agent.status != AgentStatus.DEAD:
        return False
    claim = resumable_claim(agent)
    if claim is not None:
        reopen_claim(claim, actor=actor)
    lease = leases.working_lease(agent) if claim and claim.started_at else leases.offered_lease() if claim else leases.waiting_lease()
    reason = "it shows life again" + (f", task {claim.task_id} is still its own" if claim else "")
    move(agent, "resume", actor=actor, reason=reason, lease=lease, has_claim=claim is not None)
    return True


def renew_lease(agent_id: int, *, incarnation: str) -> bool:
    """One guarded UPDATE: no lock, no event, no push. False if the incarnation is not the live one: then `show_life` decides."""
    waiting = Case(When(status=AgentStatus.READY, then=leases.waiting_lease()), default=F("lease_expires_at"))
    current = Agent.objects.filter(pk=agent_id, incarnation=incarnation, status__in=LIVE)
    return current.update(lease_expires_at=waiting, last_seen_at=now()) == 1


def renew_leases(renewals: list[tuple[int, str]]) -> list[bool | Exception]:
    """As `renew_lease` for each agent and incarnation, in one transaction. Whose row is locked is waited for alone, after the others."""
    together: set[tuple[int, str]] = set()
    if len(renewals) > 1:
        with transaction.atomic():
            asked = Agent.objects.filter(pk__in=[agent_id for agent_id, _ in renewals], status__in=LIVE)
            free = asked.order_by("pk").select_for_update(skip_locked=True, of=("self",))
            together = set(free.values_list("pk", "incarnation")) & set(renewals)
            waiting = Case(When(status=AgentStatus.READY, then=leases.waiting_lease()), default=F("lease_expires_at"))
            Agent.objects.filter(pk__in=[agent_id for agent_id, _ in together]).update(lease_expires_at=waiting, last_seen_at=now())
    return [renewal in together or attempted(renew_lease, renewal[0], incarnation=renewal[1]) for renewal in renewals]


def show_life(agent_id: int, *, room_id: int, incarnation: str) -> str:
    """A sign of life of an incarnation: 'ok', or 'resume' when it had been declared dead. Raises Superseded if it isn't the current one."""
    with agent_locked(room_id, agent_id) as (_, agent):
        if agent.incarnation != incarnation:
            known = Incarnation.objects.filter(agent=agent, key=incarnation).first()
            raise Superseded((known and known.ended_by) or f"a newer start of {agent.role} took over")
        if revive(agent, actor=agent.role):
            return "resume"
        if agent.status == AgentStatus.READY and agent.waiting_since is None:
            agent.lease_expires_at = leases.between_tasks_lease(agent)
        agent.last_seen_at = now()
        agent.save()
        return "ok"


def disconnect_agent(agent_id: int, *, incarnation: str, connection: str, is_planned: bool) -> None:
    """The waiting socket ended. Without a word, whoever was there has 10 s to come back; a newer socket's lease is not touched."""
    mine = Agent.objects.filter(pk=agent_id, incarnation=incarnation, connection=connection)
    if is_planned:
        mine.update(waiting_since=None, connection="")
    else:
        soon = Least(F("lease_expires_at"), leases.lease(settings.DROPPED_TTL))
        cut = Case(When(status=AgentStatus.READY, then=soon), default=F("lease_expires_at"))
        mine.update(waiting_since=None, connection="", lease_expires_at=cut)


def leave_agent(room_id: int, *, role: str, actor: str, incarnation: str | None = None) -> Agent:
    """Ends an agent on purpose. With an incarnation: a program's goodbye, which never touches its successor.

    Without: a person's act on a custom agent.
    """
    with room_locked(room_id) as room:
        require_role(room, role)
        agent = lock_agent(room_id, role=role)
        if incarnation is not None and (agent.incarnation != incarnation or agent.kind == AgentKind.REMOTE):
            return agent
        if agent.kind == AgentKind.REMOTE:
            raise NotAllowed(f"{role} is a remote agent: leave is for custom ones, use stop_agent")
        if agent.status == AgentStatus.OFFLINE:
            return agent
        reason = f"stopped by {actor}" if incarnation is None else "its program ended"
        end_incarnation(agent, f"{role} was told to leave by {actor}" if incarnation is None else reason)
        freed = release_open_claim(agent, outcome=Outcome.LEFT, actor=actor, reason=reason)
        move(agent, "leave", actor=actor, reason=reason)
        announce_pending(freed)
        return agent


def dismiss_agent(room_id: int, *, role: str, actor: str) -> Agent:
    """A person has seen that it is dead, and wants it out of sight."""
    with room_locked(room_id) as room:
        require_role(room, role)
        agent = lock_agent(room_id, role=role)
        end_incarnation(agent, f"{role} was dismissed by {actor}")
        move(agent, "cleanup", actor=actor, reason=f"dismissed by {actor}")
        return agent


@dataclass
class WaiterState:
    incarnation: str
    connection: str
    has_work: bool
    ended_by: dict[str, str] = field(default_factory=dict)


ROLES_WITH_WORK = Prepared[Task](
    lambda room: Task.objects.filter(room=room, status=TaskStatus.PENDING).order_by().values_list("assigned_role")
)
SPEAKERS = Prepared[Agent](lambda room: Agent.objects.filter(room=room).values_list("pk", "role", "status", "incarnation", "connection"))


@dataclass
class Look:
    states: dict[int, WaiterState]
    valid_tokens: set[int]


def look_after_waiters(room_id: int, *, tokens: set[int]) -> Look:
    """Who speaks for each agent of the room now, whether there is work for it, and which of these tokens still may wait for it.

    Two queries; one more if there are tokens to look at, and one if somebody was displaced.
    """
    from agents import waiters

    roles_with_work = {role for (role,) in ROLES_WITH_WORK.plain_rows(room=room_id)}
    states = {
        pk: WaiterState(incarnation, connection, status == AgentStatus.READY and role in roles_with_work)
        for pk, role, status, incarnation, connection in SPEAKERS.plain_rows(room=room_id)
        if waiters.are_here(pk)
    }
    displaced = waiters.displaced(room_id, {pk: state.incarnation for pk, state in states.items()})
    for agent_id, key, note in (
        Incarnation.objects.filter(key__in=displaced).values_list("agent_id", "key", "ended_by") if displaced else ()
    ):
        states[agent_id].ended_by[key] = note
    return Look(states, valid_tokens(room_id, tokens) if tokens else set())


def valid_tokens(room_id: int, tokens: set[int]) -> set[int]:
    """Not revoked since, and still of somebody who may act in the room, or of its agent's run."""
    acting = Membership.objects.filter(room=room_id, user__is_active=True).exclude(role=MemberRole.VIEWER)
    may_wait = Q(user__in=acting.values("user")) | Q(kind=TokenKind.AGENT, room=room_id, expires_at=None)
    return set(Token.objects.usable().filter(may_wait, pk__in=tokens).values_list("pk", flat=True))


def find_agent(room: Room, role: str) -> Agent:
    require_role(room, role)
    agent = Agent.objects.filter(room=room, role=role).first()
    if agent is None:
        raise NotFound(f"{role} has no agent in {room}", code="no_such_role", allowed=room.team)
    return agent
