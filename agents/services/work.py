"""What an agent does with the task it holds. Every act presents its claim, which stands for task, attempt and incarnation at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from django.utils.timezone import now

from agents import leases
from agents.models import Agent, AgentStatus, Claim, Outcome, run_incarnation
from agents.signals import agent_sought
from chatroom import signals
from chatroom.errors import NotFound, OutdatedClaim, RoleNotYours, Superseded
from chatroom.events import move, record_event
from chatroom.models import Event, Message, MessageKind, Room, Task, TaskStatus
from chatroom.models.task import ACTIVE
from chatroom.prepared import Prepared
from chatroom.principals import Principal
from chatroom.rows import save_changes
from chatroom.services.messages import clean_text, post, post_notice
from chatroom.services.rooms import require_role, room_locked
from chatroom.services.tasks import create_task, promote_next

from .claims import end_claim
from .presence import show_life


@dataclass
class Held:
    """A claim that counts, with everything locked that an act on it touches."""

    room: Room
    agent: Agent
    task: Task
    claim: Claim


@dataclass(frozen=True)
class Done:
    task: Task
    message: Message | None = None
    next_task: Task | None = None


@contextmanager
def held(room_id: int, claim_key: str, *, principal: Principal) -> Iterator[Held]:
    """Locks room, agent, task and claim. Raises OutdatedClaim, with who has the task now, when the claim no longer counts."""
    with room_locked(room_id) as room:
        claim = find_claim(room, claim_key, principal=principal)
        if note_life(claim):
            claim = find_claim(room, claim_key, principal=principal)
        agent, task = claim.agent, claim.task
        if not claim.is_open or claim.incarnation != agent.incarnation or agent.status != AgentStatus.WORKING:
            raise OutdatedClaim(describe_outdated(claim, task), current=task.status)
        agent.last_seen_at = now()
        yield Held(room, agent, task, claim)


def find_claim(room: Room, claim_key: str, *, principal: Principal) -> Claim:
    """The claim of a locked room, with its agent and task, all locked. Raises OutdatedClaim when it is of an earlier run of this role."""
    claim = LOCKED_CLAIM.first(key=claim_key, room=room.pk) if claim_key.isprintable() else None
    if claim is None:
        raise NotFound(f"there is no claim {claim_key[:50]!r} in this room", code="no_such_claim")
    claim.agent.room = claim.task.room = room
    principal.require_speaker(room, claim.agent.role)
    if principal.user is None and claim.incarnation != run_incarnation(principal.subject_id):
        if claim.is_open and claim.incarnation == claim.agent.incarnation:
            raise RoleNotYours(f"claim {claim_key[:50]} is of another start of {claim.agent.role} than this token")
        raise OutdatedClaim(describe_outdated(claim, claim.task), current=claim.task.status)
    return claim


LOCKED_CLAIM = Prepared[Claim](
    lambda key, room: (
        Claim.objects.filter(key=key, task__room=room)
        .select_for_update(of=("self", "agent", "task"))
        .select_related("agent", "task__message")
        .order_by()
    )
)


def note_life(claim: Claim) -> bool:
    """A call is a sign of life: it brings back an agent that was declared dead, with its claim if that is still free. True if so."""
    agent = claim.agent
    if agent.incarnation == claim.incarnation and agent.status in (AgentStatus.DEAD, AgentStatus.READY):
        try:
            return show_life(agent.pk, room_id=agent.room_id, incarnation=claim.incarnation) == "resume"
        except Superseded:
            pass  # the act itself finds the claim outdated and says so
    return False


def describe_outdated(claim: Claim, task: Task) -> str:
    """In the words of the one who holds the outdated claim."""
    newer = Claim.objects.filter(task=task, pk__gt=claim.pk).select_related("agent").order_by("-id").first()
    if newer is not None:
        holder = describe_whereabouts(newer.agent)
        return f"task {task.pk} was reassigned: attempt {claim.attempt} is yours, attempt {newer.attempt} is with {holder}"
    ended = f"{claim.get_outcome_display().lower()} by {claim.ended_by}" if claim.outcome else "its agent is no longer working on it"
    events = Event.objects.filter(subject="task", subject_id=task.pk, to_state=task.status).order_by("-id")
    if claim.outcome != Outcome.COMPLETED and (reason := events.values_list("reason", flat=True).first()):
        ended += f": {reason}"
    return f"task {task.pk} is {task.get_status_display().lower()}: your claim of attempt {claim.attempt} ended ({ended})"


def describe_whereabouts(agent: Agent) -> str:
    """`builder on laptop-7`; a custom agent is wherever its person is."""
    machine = next((name for _, name in agent_sought.send(Agent, agent=agent) if name), "")
    return f"{agent.role} on {machine}" if machine else agent.role


def start_task(room_id: int, claim_key: str, *, principal: Principal) -> Task:
    with held(room_id, claim_key, principal=principal) as hold:
        if hold.claim.started_at is None:
            move(hold.task, "start_task", actor=hold.agent.role)
            hold.claim.delivered_at = hold.claim.delivered_at or now()
            hold.claim.started_at = now()
            save_changes(hold.claim)
        extend_lease(hold.agent)
        return hold.task


def report_progress(room_id: int, claim_key: str, *, text: str, principal: Principal) -> Done:
    with held(room_id, claim_key, principal=principal) as hold:
        message = post(hold.room, text=clean_text(text), sender=hold.agent.role, kind=MessageKind.PROGRESS, task=hold.task)
        extend_lease(hold.agent)
        return Done(hold.task, message)


def extend_lease(agent: Agent) -> None:
    agent.lease_expires_at = leases.working_lease(agent)
    save_changes(agent)


def complete_task(room_id: int, claim_key: str, *, text: str, principal: Principal) -> Done:
    """The end of the chain: its result goes to the people."""
    return finish(room_id, claim_key, text=text, next_role="user", principal=principal)


def handoff(room_id: int, claim_key: str, *, next_role: str, text: str, principal: Principal) -> Done:
    """In one transaction: the sender's task is completed, the message posted, the next role's task made, the sender's queue promoted."""
    return finish(room_id, claim_key, text=text, next_role=next_role, principal=principal)


def finish(room_id: int, claim_key: str, *, text: str, next_role: str, principal: Principal) -> Done:
    text = clean_text(text)
    with held(room_id, claim_key, principal=principal) as hold:
        to_user = next_role == "user"
        if not to_user:
            require_role_or_user(hold.room, next_role)
        kind = MessageKind.RESULT if to_user else MessageKind.HANDOFF
        message = post(hold.room, text=text, sender=hold.agent.role, kind=kind, to=next_role, task=hold.task)
        end_claim(hold.claim, outcome=Outcome.COMPLETED, actor=hold.agent.role)
        move(hold.task, "complete_task", actor=hold.agent.role, reason=f"to {next_role}", ends_chain=to_user)
        move(
            hold.agent, "task_complete", actor=hold.agent.role, reason=f"task {hold.task.pk}", lease=leases.between_tasks_lease(hold.agent)
        )
        next_task = None if to_user else create_next(hold, message=message, role=next_role)
        promote_next(room_id, role=hold.task.assigned_role)
        return Done(hold.task, message, next_task and Task.objects.get(pk=next_task.pk))


def require_role_or_user(room: Room, role: str) -> None:
    try:
        require_role(room, role)
    except NotFound as error:
        raise NotFound(error.message + ", or user", code=error.code, allowed=[*room.team, "user"]) from None


def create_next(hold: Held, *, message: Message, role: str) -> Task:
    return create_task(
        hold.room,
        message=message,
        role=role,
        actor=hold.agent.role,
        origin=hold.task.origin,
        chain=hold.task.chain,
        priority=hold.task.priority,
    )


def fail_task(room_id: int, claim_key: str, *, text: str, principal: Principal) -> Done:
    """The agent says that this can't be done; it goes on to the next task itself."""
    text = clean_text(text)
    with held(room_id, claim_key, principal=principal) as hold:
        message = post(hold.room, text=text, sender=hold.agent.role, kind=MessageKind.FAILURE, to="user", task=hold.task)
        fail_held_task(hold.room, hold.task, claim=hold.claim, reason=text, actor=hold.agent.role, outcome=Outcome.FAILED)
        lease = leases.between_tasks_lease(hold.agent)
        move(hold.agent, "task_released", actor=hold.agent.role, reason=f"task {hold.task.pk} failed", lease=lease)
        promote_next(room_id, role=hold.task.assigned_role)
        return Done(hold.task, message)


def fail_held_task(room: Room, task: Task, *, claim: Claim | None, reason: str, actor: str, outcome: str) -> None:
    """Fails one task; in a fail-fast room the other active tasks fail with it. The caller moves the agent, then promotes the queue."""
    if claim is not None:
        end_claim(claim, outcome=outcome, actor=actor)
    move(task, "fail_task", actor=actor, reason=reason, failure_reason=reason)
    if room.fail_fast:
        abort_others(room, task)


def abort_others(room: Room, failed: Task) -> None:
    """Fail-fast: pending ones can't fail, they are closed; held ones fail as aborted, and their holders are told at their next call."""
    reason = f"aborted: task {failed.pk} failed, and {room} is a fail-fast room"
    for task in Task.objects.select_for_update(of=("self",)).filter(room=room, status__in=ACTIVE).exclude(pk=failed.pk).order_by("pk"):
        if task.status == TaskStatus.PENDING:
            move(task, "cancel_task", actor="chatroom", reason=reason)
        else:
            move(task, "fail_task", actor="chatroom", reason=reason, failure_reason=reason)
            signals.task_left_holder.send(Task, task=task, outcome=Outcome.ABORTED, actor="chatroom", reason=reason)
        promote_next(room.pk, role=task.assigned_role)
    post_notice(room, reason[0].upper() + reason[1:], task=failed)


def keep_late_result(room_id: int, claim_key: str, *, text: str) -> None:
    """Nothing a machine produced is thrown away: an outdated claim's text stands in the room, marked as late; a repeat adds nothing."""
    text = clean_text(text)
    with room_locked(room_id) as room:
        claim = Claim.objects.select_related("agent", "task").get(key=claim_key)
        said = Message.objects.filter(
            task=claim.task, sender=claim.agent.role, kind__in=[MessageKind.LATE_RESULT, MessageKind.RESULT, MessageKind.HANDOFF]
        )
        if not any(message.text == text for message in said):
            post(room, text=text, sender=claim.agent.role, kind=MessageKind.LATE_RESULT, task=claim.task, data={"attempt": claim.attempt})
            record_event(
                claim.task, "late_result", actor=claim.agent.role, room_id=room_id, role=claim.agent.role, data={"attempt": claim.attempt}
            )
