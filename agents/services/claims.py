"""Claims: who holds which attempt of a task. Whatever changes one holds the room's lock, or takes it (`room_locked`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from django.db import transaction
from django.utils.timezone import now

from agents import leases, waiters
from agents.models import Agent, AgentStatus, Claim, Outcome
from chatroom import signals
from chatroom.errors import Superseded
from chatroom.events import move, record_event
from chatroom.models import Message, MessageKind, Room, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.rows import insert_in_time, save_changes
from chatroom.services.rooms import room_locked
from chatroom.unit import one_unit

CONTEXT_MESSAGES = 20
CONTEXT_CHARACTERS = 4000


class ClaimLost(Exception):
    """The offer was taken back before the agent confirmed it."""


@dataclass(frozen=True)
class Offer:
    claim: str
    attempt: int
    task: int
    role: str
    text: str
    sender: str
    context: list[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return {"type": "offer", "from": fields.pop("sender"), **fields}


def lock_agent(room_id: int, **key: Any) -> Agent:
    [(name, value)] = key.items()
    agent = LOCKED_AGENT[name].first(room=room_id, **key)
    if agent is None:
        raise Agent.DoesNotExist(f"there is no agent with {name} {value} in room {room_id}")
    return agent


LOCKED_AGENT = {
    "pk": Prepared[Agent](lambda room, pk: Agent.objects.select_for_update(of=("self",)).filter(room=room, pk=pk)),
    "role": Prepared[Agent](lambda room, role: Agent.objects.select_for_update(of=("self",)).filter(room=room, role=role)),
}


@contextmanager
def agent_locked(room_id: int, agent_id: int) -> Iterator[tuple[Room, Agent]]:
    """`room_locked`, then `lock_agent`, as one statement: the rows are locked in this order, and the agent's is read as it is by then."""
    with one_unit() as unit:
        agent = AGENT_AND_ROOM.first(room=room_id, pk=agent_id)
        if agent is None:
            with room_locked(room_id):  # or it is the room that is gone, and says so
                raise Agent.DoesNotExist(f"there is no agent {agent_id} in room {room_id}")
        agent.room = unit.rooms.setdefault(room_id, agent.room)
        yield agent.room, agent


AGENT_AND_ROOM = Prepared[Agent](
    lambda room, pk: Agent.objects.select_related("room").select_for_update(of=("room", "self")).filter(room=room, pk=pk)
)


def open_claim_of(agent: Agent) -> Claim | None:
    return OPEN_CLAIM_OF.first(agent=agent.pk)


OPEN_CLAIM_OF = Prepared[Claim](lambda agent: Claim.objects.open().filter(agent=agent).select_related("task__message", "task__room"))


def offer_next(agent_id: int, *, room_id: int, incarnation: str, connection: str) -> Offer | None:
    """The work there is for the agent waiting on this socket: its own open claim again, or a new claim of its role's pending task."""
    with agent_locked(room_id, agent_id) as (room, agent):
        if agent.incarnation != incarnation or agent.connection != connection:
            raise Superseded(f"another socket speaks for {agent.role} now")
        if claim := open_claim_of(agent):
            return offer_of(claim, agent) if claim.incarnation == incarnation else None
        task = pending_task_of(agent)
        if task and may_take_work(agent):
            return offer_of(claim_task(room, agent, task), agent)
        if agent.status == AgentStatus.READY and agent.waiting_since is None:
            # Its offer was taken back before it was confirmed: the same socket waits on.
            agent.waiting_since = now()
            agent.save()
        return None


def pending_task_of(agent: Agent) -> Task | None:
    return (
        Task.objects.select_for_update(of=("self",))
        .filter(room_id=agent.room_id, assigned_role=agent.role, status=TaskStatus.PENDING)
        .select_related("message")
        .first()
    )


def may_take_work(agent: Agent) -> bool:
    """Ready, not about to be stopped, and its lease not over: whoever is late shows life first."""
    return (
        agent.status == AgentStatus.READY and agent.accepts_work and agent.lease_expires_at is not None and agent.lease_expires_at > now()
    )


def claim_task(room: Room, agent: Agent, task: Task) -> Claim:
    """The one place where work changes hands. The constraints make a second open claim impossible."""
    move(task, "claim_task", actor=agent.role)
    claim = Claim(task=task, agent=agent, incarnation=agent.incarnation, attempt=task.attempt, round=task.round)
    insert_in_time(claim)
    move(agent, "claim_task", actor=agent.role, reason=f"task {task.pk}", lease=leases.offered_lease(), data={"task": task.pk})
    return claim


def claim_for_local_waiter(task: Task) -> None:
    """In the transaction that made the task pending: an agent waiting on a socket of this process gets it without a second look."""
    if not waiters.are_in(task.room_id):
        return
    agent = lock_agent(task.room_id, role=task.assigned_role)
    waiter = waiters.find(agent.pk, agent.connection)
    if waiter is None or not may_take_work(agent):
        return
    offer = offer_of(claim_task(task.room, agent, task), agent)
    transaction.on_commit(lambda: waiter.deliver_from_thread(offer))


def offer_of(claim: Claim, agent: Agent) -> Offer:
    task = claim.task
    return Offer(
        claim=claim.key,
        attempt=claim.attempt,
        task=task.pk,
        role=agent.role,
        text=task.message.text,
        sender=task.message.sender,
        context=context_of(task),
    )


def context_of(task: Task) -> list[dict[str, Any]]:
    """What was said on the way to this task, oldest first, shortened."""
    if task.chain_id == task.message_id and task.round == 1:
        return []
    chain = Task.objects.filter(chain_id=task.chain_id, pk__lte=task.pk)
    said = Message.objects.filter(room_id=task.room_id, task__in=chain).exclude(kind__in=[MessageKind.PROGRESS, MessageKind.NOTICE])
    first = Message.objects.filter(pk=task.chain_id)
    newest = sorted({*first, *said.order_by("-id")[:CONTEXT_MESSAGES]}, key=lambda message: message.pk)
    return [
        {"from": message.sender, "to": message.to, "text": message.text[:CONTEXT_CHARACTERS], "time": message.created_at.isoformat()}
        for message in newest
        if message.pk != task.message_id
    ]


def confirm_delivery(claim_key: str, *, room_id: int, incarnation: str) -> bool:
    """`received` came: the claim counts as delivered. False if it was taken back meanwhile."""
    with room_locked(room_id):
        claim = OPEN_CLAIM.first(key=claim_key, incarnation=incarnation)
        if claim is None:
            return False
        if claim.delivered_at is None:
            claim.delivered_at = now()
            save_changes(claim)
            record_event(claim.task, "deliver", actor=claim.agent.role, room_id=room_id, role=claim.agent.role)
        return True


OPEN_CLAIM = Prepared[Claim](
    lambda key, incarnation: (
        Claim.objects.select_for_update(of=("self",)).filter(key=key, incarnation=incarnation).open().select_related("task", "agent")
    )
)


def abandon_offer(claim_key: str, *, room_id: int, reason: str) -> None:
    """The offer was never confirmed: the task is free at once, and the agent is where it was before."""
    with room_locked(room_id):
        claim = (
            Claim.objects.select_for_update(of=("self",)).filter(key=claim_key, delivered_at=None).open().select_related("agent").first()
        )
        if claim is None:
            return
        agent = lock_agent(room_id, pk=claim.agent_id)
        freed = release_claim(claim, outcome=Outcome.UNDELIVERED, actor="chatroom", reason=reason)
        if agent.status == AgentStatus.WORKING:
            move(agent, "task_released", actor="chatroom", reason=reason, lease=agent.lease_expires_at)
        announce_pending(freed)


def end_claim(claim: Claim, *, outcome: str, actor: str) -> None:
    claim.outcome, claim.ended_by, claim.ended_at = outcome, actor, now()
    save_changes(claim)


def release_claim(claim: Claim, *, outcome: str, actor: str, reason: str) -> Task:
    """Ends the claim; its task is pending again and keeps its role. The caller decides about the agent, then calls `announce_pending`."""
    end_claim(claim, outcome=outcome, actor=actor)
    task = claim.task  # read under the room's lock, as the claim itself
    if task.is_held:
        trigger = "recover_stuck_acknowledged" if task.status == TaskStatus.ACKNOWLEDGED else "recover_orphaned"
        move(task, trigger, actor=actor, reason=reason)
    return task


def release_open_claim(agent: Agent, *, outcome: str, actor: str, reason: str) -> Task | None:
    """The task it held, now pending; the caller announces it once the agent's own move is made."""
    claim = open_claim_of(agent)
    return release_claim(claim, outcome=outcome, actor=actor, reason=reason) if claim else None


def announce_pending(freed: Task | None, *, agent: Agent | None = None) -> None:
    """Unless it was not held any more, but taken from its holder by an act of a person's. `agent`: of its role, if at hand."""
    if freed is not None and freed.status == TaskStatus.PENDING:
        signals.task_pending.send(Task, task=freed, agent=agent)


def resumable_claim(agent: Agent) -> Claim | None:
    """The claim that only its lease ended, on a task nobody claimed since: the same incarnation gets it back as it was."""
    claim = Claim.objects.filter(agent=agent).select_related("task__message").order_by("-id").first()
    if claim is None or claim.incarnation != agent.incarnation or claim.outcome != Outcome.LEASE_EXPIRED:
        return None
    task = Task.objects.select_for_update(of=("self",)).get(pk=claim.task_id)
    return claim if task.status == TaskStatus.PENDING and (task.attempt, task.round) == (claim.attempt, claim.round) else None


def reopen_claim(claim: Claim, *, actor: str) -> None:
    """`resume_task`: same id, same attempt; its earlier calls stay valid."""
    task = Task.objects.select_for_update(of=("self",)).get(pk=claim.task_id)
    move(task, "resume_task", actor=actor, reason="its agent shows life again", had_started=claim.started_at is not None)
    claim.outcome, claim.ended_by, claim.ended_at = "", "", None
    claim.save()
