"""Where an agent lives and how it is started. Absent means unchanged."""

import posixpath
from collections.abc import Mapping

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Max, Q
from django.utils.timezone import now

from agents.models import Agent, AgentKind, AgentStatus, Outcome
from agents.services.claims import announce_pending, lock_agent, release_open_claim
from agents.services.presence import end_incarnation
from chatroom.errors import Invalid, NotAllowed, NotFound, WrongState
from chatroom.events import move, record_event
from chatroom.models import Room, TokenKind
from chatroom.services.rooms import require_role, room_locked
from chatroom.services.tokens import revoke_tokens
from machines import hints
from machines.models import Command, Machine, Mode, Placement, Run

from .desire import cancel_in_flight, lock_placement, wake_locked
from .runs import fail_lost_run


class ProcessLives(WrongState):
    """It can't be moved while its process lives, and its machine is there to end it."""

    code = "process_lives"


def configure_agent(
    room_id: int,
    *,
    role: str,
    user: User,
    kind: str | None = None,
    machine: str | None = None,
    harness: str | None = None,
    model: str | None = None,
    directory: str | None = None,
    mode: str | None = None,
    force: bool = False,
) -> Agent:
    """Changes what is given. Machine, kind and mode only while no process lives: stop it first, or force it when its machine is away."""
    with room_locked(room_id) as room:
        require_role(room, role)
        agent = lock_agent(room_id, role=role)
        placement = Placement.objects.select_for_update(of=("self",)).select_related("machine").filter(agent=agent).first()
        kind = kind or agent.kind
        require_known(kind, mode)
        target = find_machine(user, machine) if machine else placement.machine if placement else None
        moves = is_moving(agent, placement, kind=kind, target=target, mode=mode)
        if moves:
            end_before_moving(room, agent, placement, actor=user.get_username(), force=force)
        if kind == AgentKind.REMOTE:
            place(agent, placement, target=target, harness=harness, model=model, directory=directory, mode=mode)
        elif machine or harness or model or directory or mode:
            raise Invalid(f"{role} is a custom agent: machine, harness, model, directory and mode are for remote ones")
        elif placement is not None:
            placement.delete()
            hints.machine_changed(placement.machine_id)
        agent = lock_agent(room_id, role=role)
        agent.kind, agent.accepts_work = kind, agent.accepts_work or moves
        agent.save()
        where = {"kind": kind, "machine": target.name if target and kind == AgentKind.REMOTE else None}
        record_event(agent, "configure", actor=user.get_username(), room_id=room_id, role=role, data=where)
        if kind == AgentKind.REMOTE:
            wake_locked(lock_placement(room, role))  # work may have been waiting for just this
        return lock_agent(room_id, role=role)


def require_known(kind: str, mode: str | None) -> None:
    if kind not in AgentKind.values:
        raise Invalid(f"kind {kind[:60]!r}: expected custom or remote", allowed=AgentKind.values)
    if mode == Mode.TASK:
        raise Invalid("mode task: it comes in a later version, expected loop", allowed=[Mode.LOOP])
    if mode is not None and mode != Mode.LOOP:
        raise Invalid(f"mode {mode[:60]!r}: expected loop", allowed=[Mode.LOOP])


def find_machine(user: User, name: str) -> Machine:
    machine = Machine.objects.visible_to(user).filter(name=name).first()
    if machine is None:
        raise NotFound(f"there is no machine {name[:60]!r} of yours")
    if machine.owner_id != user.pk and not user.is_superuser:
        raise NotAllowed(f"{machine} belongs to {machine.owner}: only its owner may place agents on it")
    return machine


def is_moving(agent: Agent, placement: Placement | None, *, kind: str, target: Machine | None, mode: str | None) -> bool:
    if kind != agent.kind:
        return True
    return placement is not None and (placement.machine != target or mode not in (None, placement.mode))


def end_before_moving(room: Room, agent: Agent, placement: Placement | None, *, actor: str, force: bool) -> None:
    """A custom agent's program is told that it is over; a remote one must have been stopped, for at most one process may live."""
    run = Run.objects.unfinished().filter(agent=agent).first()
    if run is not None and placement is not None:
        where = f"{agent.role} has a process on {placement.machine} ({run.state})"
        if placement.machine.is_connected:
            raise ProcessLives(f"{where}: stop it first", current=agent.status)
        if not force:
            raise WrongState(f"{where}, and {placement.machine} is away: --force gives that run up", current=agent.status)
        revoke_tokens(Q(kind=TokenKind.AGENT, subject_id=run.pk))
        fail_lost_run(run.pk, message=f"given up by {actor}: its machine {placement.machine} is away", may_wake=False)
    agent = lock_agent(room.pk, role=agent.role)
    cancel_in_flight(agent, f"configured anew by {actor}")
    end_incarnation(agent, f"{agent.role} was configured anew by {actor}")
    freed = release_open_claim(agent, outcome=Outcome.LEFT, actor=actor, reason="configured anew")
    if agent.status != AgentStatus.OFFLINE:
        move(agent, "leave", actor=actor, reason=f"configured anew by {actor}")
    announce_pending(freed)


def place(
    agent: Agent,
    placement: Placement | None,
    *,
    target: Machine | None,
    harness: str | None,
    model: str | None,
    directory: str | None,
    mode: str | None,
) -> None:
    if target is None:
        raise Invalid(f"{agent.role} has no machine yet: expected --machine")
    if placement is None and not harness:
        raise Invalid(f"{agent.role} has no harness yet: expected one of {names_of(target)}", allowed=harnesses_of(target))
    old_machine = placement.machine_id if placement else None
    placement = placement or Placement(agent=agent, generation=last_generation(agent))
    settle_in(placement, target, {"harness": harness, "model": model, "directory": directory, "mode": mode})
    if placement.pk and old_machine != target.pk:
        begin_anew(placement)
    placement.moving = None  # the last word wins
    placement.save()
    for machine_id in {target.pk, old_machine} - {None}:
        hints.machine_changed(int(machine_id or 0))


def settle_in(placement: Placement, target: Machine, given: Mapping[str, str | None]) -> None:
    """Sets what is given, unsaved. Refused when the machine does not offer it, or what the agent brings along."""
    is_elsewhere = placement.machine_id != target.pk
    if is_elsewhere:
        require_place(target)
    changed = {name for name, value in given.items() if value is not None}
    for name in changed:
        setattr(placement, name, given[name])
    if "harness" in changed or is_elsewhere:
        require_harness(target, placement.harness)
    if changed & {"model", "harness"} or is_elsewhere:
        require_model(target, placement.harness, placement.model)
    if "directory" in changed or is_elsewhere:
        require_directory(target, placement.directory)
    placement.machine = target


def begin_anew(placement: Placement) -> None:
    """What failed on the old machine says nothing about the new one."""
    placement.generation += 1
    placement.exhausted_generation, placement.current_run, placement.history_since = None, None, now()
    placement.forget_wait()


def last_generation(agent: Agent) -> int:
    """An agent that was remote before goes on from there: a daemon that remembers it takes a lower generation for a late message."""
    return max(found.filter(agent=agent).aggregate(last=Max("generation"))["last"] or 0 for found in (Run.objects, Command.objects))


def harnesses_of(machine: Machine) -> list[str]:
    return [offered["name"] for offered in machine.harnesses]


def names_of(machine: Machine) -> str:
    return ", ".join(harnesses_of(machine)) or "no harness"


def require_place(machine: Machine) -> None:
    """Two that come at the same instant may both get the last place: the limit is there to notice a mistake, not to count exactly."""
    found = machine.placements.count()
    if found >= settings.MACHINE_AGENTS:
        raise WrongState(f"{machine} has {found} agents already: expected at most {settings.MACHINE_AGENTS} on one machine")


def require_harness(machine: Machine, harness: str) -> None:
    """Of a machine that never came yet nothing is known: then its daemon has the first and the last word."""
    if machine.last_seen_at is not None and harness not in harnesses_of(machine):
        raise Invalid(f"harness {harness[:60]!r}: {machine} offers {names_of(machine)}", allowed=harnesses_of(machine))


def require_model(machine: Machine, harness: str, model: str) -> None:
    offered: list[str] = next((found["models"] for found in machine.harnesses if found["name"] == harness), [])
    if model and offered and model not in offered:
        raise Invalid(f"model {model[:60]!r}: {harness} on {machine} offers {', '.join(offered)}", allowed=offered)


def require_directory(machine: Machine, directory: str) -> None:
    """A first look at the words; the machine itself resolves links before each start, and has the last word."""
    if not directory or machine.last_seen_at is None:
        return
    clean = posixpath.normpath(directory)
    if "\0" in directory or not any(clean == allowed or clean.startswith(allowed.rstrip("/") + "/") for allowed in machine.allow_dirs):
        allowed = ", ".join(machine.allow_dirs) or "none"
        raise Invalid(f"directory {directory[:200]!r}: {machine} allows {allowed}", allowed=machine.allow_dirs)
