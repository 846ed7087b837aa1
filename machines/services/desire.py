"""What people, and the system, want of a remote agent.

The desired state changes in the transaction that makes the command; the daemon converges on it.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from django.contrib.auth.models import User
from django.db.models import Q
from django.utils.timezone import now

from agents.models import Agent, AgentKind, AgentStatus, Outcome
from agents.services.claims import announce_pending, lock_agent, release_open_claim
from agents.services.presence import end_incarnation
from chatroom.errors import NotAllowed, NotFound, WrongState
from chatroom.events import move, record_event
from chatroom.models import Room, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.services.rooms import require_role, room_locked
from chatroom.unit import one_unit
from machines import hints
from machines.models import Act, Command, Desired, Machine, Placement, Run
from machines.models.command import IN_FLIGHT


@dataclass
class Locked:
    room: Room
    agent: Agent
    placement: Placement


def lock_placement(room: Room, role: str) -> Locked:
    require_role(room, role)
    agent = lock_agent(room.pk, role=role)
    if agent.kind != AgentKind.REMOTE:
        raise NotAllowed(f"{role} is a custom agent: a person starts and ends it; configure_agent makes it remote")
    placement = LOCKED_PLACEMENT.first(agent=agent.pk)
    if placement is None:
        raise Placement.DoesNotExist(f"{role} is remote, and lives on no machine")
    return Locked(room, agent, placement)


LOCKED_PLACEMENT = Prepared[Placement](
    lambda agent: Placement.objects.filter(agent=agent).select_for_update(of=("self",)).select_related("machine", "current_run")
)


class Placed(NamedTuple):
    room_id: int
    role: str


def find_placed(machine: Machine, agent_id: int) -> Placed | None:
    """Where in the rooms the agent is, if it lives on this machine."""
    return next((Placed(*row) for row in PLACED_THERE.plain_rows(agent=agent_id, machine=machine.pk)), None)


PLACED_THERE = Prepared[Placement](
    lambda agent, machine: Placement.objects.filter(agent=agent, machine=machine).values_list("agent__room", "agent__role")
)


def start_agent(room_id: int, *, role: str, actor: str) -> Command:
    """A person's start: joins one in flight, answers at once when it runs already, else a new generation with a clean history."""
    with room_locked(room_id) as room:
        locked = lock_placement(room, role)
        require_home(locked)
        if command := start_in_flight(locked.agent):
            return command
        if locked.agent.is_live and not locked.placement.is_stopped:
            return refused_command(locked, Act.START, actor=actor, outcome=f"{role} is already running")
        return begin_start(locked, Act.START, actor=actor, reason=f"started by {actor}", by_person=True)


def restart_agent(room_id: int, *, role: str, actor: str) -> Command:
    """A person's restart: the live process ends first, whatever it does; its task is free again."""
    with room_locked(room_id) as room:
        locked = lock_placement(room, role)
        require_home(locked)
        cancel_in_flight(locked.agent, f"restarted by {actor}")
        return begin_start(locked, Act.RESTART, actor=actor, reason=f"restarted by {actor}", by_person=True)


def require_home(locked: Locked) -> None:
    if (machine := locked.placement.machine).is_revoked:
        raise WrongState(
            f"{machine} was revoked: configure {locked.agent.role} to live on another machine first", current=locked.agent.status
        )


def begin_start(locked: Locked, act: str, *, actor: str, reason: str, by_person: bool) -> Command:
    """The agent is restarting from now on, and the generation is a new one."""
    agent, placement = locked.agent, locked.placement
    end_incarnation(agent, f"{agent.role}: {reason}")
    freed = release_open_claim(agent, outcome=Outcome.RESTARTED, actor=actor, reason=reason)
    placement.generation += 1
    placement.desired_state, placement.desired_by = Desired.RUNNING, actor
    placement.exhausted_generation, placement.restart_noted_at, placement.moving = None, now(), None
    placement.forget_wait()
    if by_person:
        placement.history_since = now()
    placement.save()
    command = make_command(locked, act, actor=actor)
    if agent.status != AgentStatus.RESTARTING:
        move(agent, "restart_initiated", actor=actor, reason=reason)
    agent.accepts_work = True
    agent.save()
    announce_pending(freed)
    return command


def stop_agent(room_id: int, *, role: str, actor: str) -> Command:
    """It stays stopped until a person starts it: no message wakes it. Offline once its daemon has confirmed that no process is left."""
    with room_locked(room_id) as room:
        locked = lock_placement(room, role)
        placement, agent = locked.placement, locked.agent
        stay_where_it_is(locked)
        command = Command.objects.in_flight().filter(agent=agent, act=Act.STOP, generation=placement.generation).first()
        if command is not None and placement.is_stopped:
            return command
        cancel_in_flight(agent, f"stopped by {actor}")
        placement.generation += 1
        placement.desired_state, placement.desired_by = Desired.STOPPED, actor
        placement.forget_wait()
        placement.save()
        agent.accepts_work = False
        agent.save()
        command = make_command(locked, Act.STOP, actor=actor)
        if not Run.objects.unfinished().filter(agent=agent).exists():
            confirm_stop(locked, reason=f"stopped by {actor}", actor=actor)
            outcome = "no process was running"
            move(command, "complete", actor=actor, reason=outcome, outcome=outcome)
        return command


def stay_where_it_is(locked: Locked) -> None:
    """The last word wins: whoever stops it now does not want it elsewhere."""
    if locked.placement.moving is not None:
        locked.placement.moving = None
        locked.placement.save()


def abort_run(room_id: int, *, role: str, actor: str) -> Command:
    """Ends the run; its task fails as aborted, with Retry; a loop agent starts anew where running is desired."""
    with room_locked(room_id) as room:
        locked = lock_placement(room, role)
        run = Run.objects.unfinished().filter(agent=locked.agent).first()
        if run is None:
            raise WrongState(f"{role} has no run to abort: it is {locked.agent.get_status_display()}", current=locked.agent.status)
        in_flight = Command.objects.in_flight().filter(act=Act.ABORT, run=run).first()
        return in_flight or make_command(locked, Act.ABORT, actor=actor, run=run)


def make_command(locked: Locked, act: str, *, actor: str, run: Run | None = None) -> Command:
    command = Command.objects.create(
        machine=locked.placement.machine, agent=locked.agent, run=run, act=act, generation=locked.placement.generation, actor=actor
    )
    record_event(command, "create", actor=actor, room_id=locked.room.pk, to_state=command.state, role=locked.agent.role, data={"act": act})
    hints.machine_changed(locked.placement.machine_id)
    return command


def refused_command(locked: Locked, act: str, *, actor: str, outcome: str) -> Command:
    """A wish that is fulfilled already: kept, so that its outcome stands where the button was."""
    command = make_command(locked, act, actor=actor)
    move(command, "complete", actor="chatroom", reason=outcome, outcome=outcome)
    return command


def start_in_flight(agent: Agent) -> Command | None:
    return START_IN_FLIGHT.first(agent=agent.pk)


def cancel_in_flight(agent: Agent, outcome: str) -> None:
    """A newer generation wins over every command before it."""
    for command in list(LOCKED_IN_FLIGHT.rows(agent=agent.pk)):
        move(command, "cancel", actor="chatroom", reason=outcome, outcome=outcome)


def finish_commands(agent: Agent, acts: Collection[str], trigger: str, *, outcome: str, generation: int | None = None) -> None:
    for command in list(LOCKED_IN_FLIGHT.rows(agent=agent.pk)):
        if command.act in acts and (generation is None or command.generation <= generation):
            move(command, trigger, actor="daemon", reason=outcome, outcome=outcome)


START_IN_FLIGHT = Prepared[Command](lambda agent: Command.objects.in_flight().starts().filter(agent=agent))
LOCKED_IN_FLIGHT = Prepared[Command](
    lambda agent: Command.objects.in_flight().filter(agent=agent).select_for_update(of=("self",)).order_by("pk")
)


def finish_one(command: Command, trigger: str, *, actor: str, outcome: str) -> None:
    """Ends one command, unless it has ended already."""
    room_id = command.room_id
    with room_locked(room_id) if room_id is not None else one_unit():
        fresh = LOCKED_COMMAND.first(command=command.pk)
        if fresh is not None and fresh.state in IN_FLIGHT:
            move(fresh, trigger, actor=actor, reason=outcome, outcome=outcome)
            hints.machine_changed(fresh.machine_id)


LOCKED_COMMAND = Prepared[Command](
    lambda command: Command.objects.filter(pk=command).select_for_update(of=("self",)).select_related("agent")
)


def confirm_stop(locked: Locked, *, reason: str, actor: str) -> None:
    """No process of the agent is left: offline, whatever it was."""
    agent = locked.agent
    end_incarnation(agent, f"{agent.role}: {reason}")
    freed = release_open_claim(agent, outcome=Outcome.LEFT, actor=actor, reason=reason)
    if agent.status != AgentStatus.OFFLINE:
        move(agent, "leave", actor=actor, reason=reason)
    announce_pending(freed)


def wake_up(room_id: int, *, role: str) -> Command | None:
    """The condition: work waits, its agent is away, its machine is there, and nobody and nothing speaks against it. Then one start."""
    with room_locked(room_id) as room:
        return wake_locked(lock_placement(room, role))


def wake_locked(locked: Locked) -> Command | None:
    if not WAITING_WORK.exists(room=locked.room.pk, role=locked.agent.role):
        return None
    if is_coming(locked) or why_not_wakeable(locked) is not None:
        return None
    return begin_start(locked, Act.START, actor="chatroom", reason="work is waiting", by_person=False)


WAITING_WORK = Prepared[Task](
    lambda room, role: Task.objects.filter(room=room, assigned_role=role, status=TaskStatus.PENDING).order_by().values("pk")[:1]
)


def is_coming(locked: Locked) -> bool:
    """There already, or somebody is at it."""
    agent, placement = locked.agent, locked.placement
    is_being_moved = placement.moving is not None and placement.moving["starts"] and placement.machine.is_connected
    return agent.is_live or agent.status == AgentStatus.RESTARTING or is_being_moved or start_in_flight(agent) is not None


@dataclass(frozen=True)
class Hindrance:
    """Why nothing automatic starts an agent. `episode` names what people were told of it, if they were told when it began."""

    reason: str
    episode: str = ""


def why_not_wakeable(locked: Locked) -> Hindrance | None:
    agent, placement = locked.agent, locked.placement
    if placement.machine.is_revoked:
        return Hindrance(f"its machine {placement.machine} was revoked", revocation_episode(placement.machine, locked.room))
    if placement.is_exhausted or agent.status == AgentStatus.DEAD_FAILED_REVIVE:
        return Hindrance("it is unrecoverable until a person restarts it", exhaustion_episode(placement) if placement.is_exhausted else "")
    if placement.is_stopped:
        return Hindrance(f"it was stopped by {placement.desired_by}")
    if not placement.machine.is_connected:
        return Hindrance(f"its machine {placement.machine} is away")
    return why_run_hinders(placement.current_run, placement.machine) if placement.current_run else None


def why_run_hinders(run: Run, machine: Machine) -> Hindrance | None:
    if run.stopped_at is not None and not run.is_finished:
        return Hindrance("its process is frozen (SIGSTOP)", freezing_episode(run))
    if ended_with_daemon(run, machine):
        return Hindrance(f"it was stopped with its daemon on {machine}")
    return None


def ended_with_daemon(run: Run, machine: Machine) -> bool:
    """And no daemon has come since: the one that still speaks is about to end."""
    return run.asked == "daemon_stop" and run.ended_at is not None and run.ended_at >= machine.status_since


def exhaustion_episode(placement: Placement) -> str:
    return f"exhausted:{placement.agent_id}:{placement.exhausted_generation}"


def revocation_episode(machine: Machine, room: Room) -> str:
    return f"revoked:{machine.pk}:{room.pk}"


def freezing_episode(run: Run) -> str:
    return f"frozen:{run.pk}:{run.stopped_at.isoformat() if run.stopped_at else ''}"


def find_command(user: User, command_id: int) -> Command:
    """Of an agent of a room of theirs; of a machine itself only for its owner, for its answer names every room it works for."""
    own = Q(agent=None) if user.is_superuser else Q(agent=None, machine__owner=user)
    command = Command.objects.filter(own | Q(agent__room__in=Room.objects.visible_to(user)), pk=command_id).first()
    if command is None:
        raise NotFound(f"there is no command {command_id}")
    return command
