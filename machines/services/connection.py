"""A daemon's socket: who speaks for the machine, and when it counts as away."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils.timezone import now

from agents.models import Agent, AgentStatus, run_incarnation
from agents.services.claims import lock_agent, resumable_claim
from agents.services.presence import revive
from chatroom.errors import ChatroomError, Invalid, NotAllowed, Superseded
from chatroom.events import move, record_event
from chatroom.gathering import attempted
from chatroom.models import Room, Task, TaskStatus
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.sweep import is_quiet
from chatroom.unit import one_unit
from machines import hints
from machines.models import Machine, MachineStatus, Mode, Placement, Run, RunState
from machines.models.run import UNFINISHED
from machines.untrusted import clean_line, read_id

from .desire import wake_up
from .runs import fail_lost_run, lock_run, note_pid, walk

MAX_RUNS = 1000
SILENT_STATES = {"miss": [MachineStatus.CONNECTED], "disconnect": [MachineStatus.CONNECTED, MachineStatus.UNRESPONSIVE]}


class SecondInstance(ChatroomError):
    """Another daemon speaks for this machine, and it is alive."""

    code, status = "second_instance", 409


class Revoked(NotAllowed):
    """The machine was taken out of service; its daemon is not wanted any more."""

    code = "revoked"


@dataclass(frozen=True)
class Offer:
    """What the machine's own configuration offers."""

    slots: int
    allow_dirs: list[str]
    harnesses: list[dict[str, Any]]

    @classmethod
    def read(cls, message: dict[str, Any]) -> "Offer":
        slots = message.get("slots", settings.MACHINE_SLOTS)
        if not isinstance(slots, int) or not 0 < slots <= 10_000:
            raise Invalid(f"slots {slots!r}: expected a whole number from 1 to 10000")
        allow_dirs = [clean_line(path, 1000) for path in list_in(message, "allow_dirs")]
        return cls(slots, allow_dirs, [read_harness(found) for found in list_in(message, "harnesses") if isinstance(found, dict)])


def list_in(message: dict[str, Any], name: str, *, limit: int = 100) -> list[Any]:
    found = message.get(name)
    return found[:limit] if isinstance(found, list) else []


def read_harness(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": clean_line(found.get("name"), 60),
        "version": clean_line(found.get("version")),
        "models": [clean_line(model) for model in list_in(found, "models")],
        "ok": bool(found.get("ok", True)),
        "error": clean_line(found.get("error"), 500),
    }


@dataclass(frozen=True)
class Introduction:
    """A daemon's hello, checked."""

    instance: str
    connection: str
    platform: str
    version: str
    offer: Offer
    runs: list[dict[str, Any]]

    @classmethod
    def read(cls, message: dict[str, Any], *, connection: str) -> "Introduction":
        instance = message.get("instance")
        if not isinstance(instance, str) or not 8 <= len(instance) <= 64 or clean_line(instance) != instance:
            raise Invalid(f"instance {clean_line(instance, 40)!r}: expected 8 to 64 characters")
        runs = [run for run in list_in(message, "runs", limit=MAX_RUNS) if isinstance(run, dict) and read_id(run.get("run"))]
        platform, version = clean_line(message.get("platform")), clean_line(message.get("version"), 40)
        return cls(instance, connection, platform, version, Offer.read(message), runs)

    @property
    def living(self) -> list[int]:
        return [run["run"] for run in self.runs]

    @property
    def unstopped(self) -> list[int]:
        return [run["run"] for run in self.runs if not run.get("stopped")]


@contextmanager
def machine_locked(machine_id: int) -> Iterator[Machine]:
    """The rooms that see this machine, in order, then its row: a status change of it is a change of each of them."""
    with one_unit() as unit:
        unit.rooms |= {room.pk: room for room in LOCKED_ROOMS.rows(machine=machine_id)}
        machine = LOCKED_MACHINE.first(machine=machine_id)
        if machine is None:
            raise Machine.DoesNotExist(f"there is no machine {machine_id}")
        yield machine


LOCKED_ROOMS = Prepared[Room](
    lambda machine: (
        Room.objects.filter(pk__in=Room.objects.filter(agents__placement__machine=machine).values("pk"))
        .select_for_update(of=("self",))
        .order_by("pk")
    )
)
LOCKED_MACHINE = Prepared[Machine](lambda machine: Machine.objects.filter(pk=machine).select_for_update(of=("self",)))


def change_status(machine: Machine, trigger: str, *, reason: str) -> None:
    """The machine's one event; each room it carries agents of gets a line of its own, by which open pages catch up."""
    move(machine, trigger, actor="chatroom", reason=reason)
    for room in list(ROOMS_OF.rows(machine=machine.pk)):
        record_event(room, f"machine_{trigger}", actor="chatroom", room_id=room.pk, reason=reason, data={"machine": machine.pk})
    hints.machine_changed(machine.pk)


ROOMS_OF = Prepared[Room](lambda machine: Room.objects.filter(agents__placement__machine=machine).distinct().order_by("pk"))


def connect_machine(machine_id: int, hello: Introduction) -> Machine:
    """Takes over the machine's voice, and resumes what lived on meanwhile. Refused while another instance's sign of life is fresh."""
    with machine_locked(machine_id) as machine:
        require_voice(machine, hello.instance)
        reason = f"{machine} is connected" if machine.last_seen_at is None else f"{machine} is back"
        if machine.instance != hello.instance:
            machine.status_since = now()  # another daemon, even if the first one's end was not noticed
        machine.instance, machine.connection, machine.last_seen_at = hello.instance, hello.connection, now()
        machine.platform, machine.version = hello.platform, hello.version
        take_offer(machine, hello.offer)
        if machine.status != MachineStatus.CONNECTED:
            change_status(machine, "connect", reason=reason)
        resume_runs(machine, hello)
        # In the same transaction: nothing may wake an agent of this machine before those that live have been heard of.
        vouched = vouch(machine_id, runs=hello.unstopped)
        resume_dead(machine, vouched.dead, is_back=True)
    return machine


def take_offer(machine: Machine, offer: Offer) -> None:
    machine.slots, machine.harnesses, machine.allow_dirs = offer.slots, offer.harnesses, offer.allow_dirs
    machine.save()
    hints.machine_changed(machine.pk)


def change_offer(machine_id: int, message: dict[str, Any]) -> None:
    """Its configuration was read again."""
    offer = Offer.read(message)
    with machine_locked(machine_id) as machine:
        take_offer(machine, offer)


def require_voice(machine: Machine, instance: str) -> None:
    require_not_revoked(machine)
    if not machine.connection or machine.instance in ("", instance) or machine.last_seen_at is None:
        return
    # Either way: a clock that was set back must not shut a machine out for an hour.
    silent = abs((now() - machine.last_seen_at).total_seconds())
    if silent < settings.UNRESPONSIVE_AFTER:
        raise SecondInstance(
            f"{machine} is already connected by another daemon (instance {machine.instance[:8]}, last sign of life {silent:.0f} s ago)"
        )


def require_not_revoked(machine: Machine) -> None:
    if machine.is_revoked:
        raise Revoked(f"{machine} was revoked")


def is_revoked(machine_id: int) -> bool:
    return Machine.objects.filter(pk=machine_id).exclude(revoked_at=None).exists()


def resume_runs(machine: Machine, hello: Introduction) -> None:
    """Most of a hundred are known as they are: one query says which are not."""
    known = Run.objects.unfinished().filter(machine=machine, pk__in=hello.living)
    behind = set(known.filter(~Q(state__in=[RunState.RUNNING, RunState.ABORTING]) | Q(pid=None)).values_list("pk", flat=True))
    for living in hello.runs:
        if living["run"] in behind:
            resume_run(machine, living)


def resume_run(machine: Machine, living: dict[str, Any]) -> None:
    """A run that lived on while its machine was away; one the server has given up is ended by the snapshot."""
    found = Run.objects.unfinished().filter(pk=living["run"], machine=machine).select_related("agent").first()
    if found is None:
        return
    with room_locked(found.agent.room_id):
        run = lock_run(found.pk)
        run.agent = found.agent
        if not run.is_finished:
            has_process = living.get("state") in (RunState.RUNNING, RunState.ABORTING)
            pid = read_id(living.get("pid")) or None
            walk(run, until=RunState.RUNNING if has_process else RunState.PREPARING, pid=pid)
            note_pid(run, pid)


def note_life(machine_id: int, *, connection: str) -> bool:
    """A sign of life: one guarded UPDATE. False if it must be looked at: another socket speaks, or the machine counted as away."""
    mine = Machine.objects.filter(pk=machine_id, connection=connection, status=MachineStatus.CONNECTED, revoked_at=None)
    return mine.update(last_seen_at=now()) == 1


def note_lives(signs: list[tuple[int, str]]) -> list[bool | Exception]:
    """As `note_life` for each machine and connection, in one transaction. Whose row is locked now is waited for alone, after the others."""
    together: set[tuple[int, str]] = set()
    if len(signs) > 1:
        with transaction.atomic():
            asked = Machine.objects.filter(pk__in=[machine_id for machine_id, _ in signs], status=MachineStatus.CONNECTED, revoked_at=None)
            free = asked.order_by("pk").select_for_update(skip_locked=True, of=("self",))
            together = set(free.values_list("pk", "connection")) & set(signs)
            Machine.objects.filter(pk__in=[machine_id for machine_id, _ in together]).update(last_seen_at=now())
    return [sign in together or attempted(note_life, sign[0], connection=sign[1]) for sign in signs]


def revive_machine(machine_id: int, *, connection: str) -> None:
    """Any sign of life restores `connected`."""
    with machine_locked(machine_id) as machine:
        require_not_revoked(machine)
        if machine.connection != connection and machine.connection:
            raise Superseded(f"another socket speaks for {machine} now")
        machine.connection, machine.last_seen_at = connection, now()
        machine.save()
        if machine.status != MachineStatus.CONNECTED:
            change_status(machine, "connect", reason=f"{machine} answers again")


def note_silence(machine_id: int, *, connection: str, trigger: str, reason: str) -> bool:
    """A timer's `miss` or `disconnect`. False while the quiet time holds it back; raises Superseded when another socket counts."""
    if is_quiet():
        return False
    note_absence(machine_id, connection=connection, trigger=trigger, reason=reason)
    return True


def note_absence(machine_id: int, *, connection: str, trigger: str, reason: str) -> None:
    with machine_locked(machine_id) as machine:
        if machine.connection != connection:
            raise Superseded(f"another socket speaks for {machine} now")
        if machine.status in SILENT_STATES[trigger]:
            change_status(machine, trigger, reason=reason)


def finish_replay(machine_id: int, *, living: Iterable[int]) -> None:
    """Everything that ended meanwhile has been reported: what is still missing went down with its machine."""
    missing = Run.objects.unfinished().filter(machine_id=machine_id).exclude(pk__in=list(living))
    for run_id in list(missing.values_list("pk", flat=True)):
        fail_lost_run(run_id, message="lost with its machine")
    wake_agents_of(machine_id)


def wake_agents_of(machine_id: int) -> None:
    work = Task.objects.filter(room=OuterRef("agent__room"), assigned_role=OuterRef("agent__role"), status=TaskStatus.PENDING)
    away = Placement.objects.filter(machine_id=machine_id, agent__status__in=[AgentStatus.OFFLINE, AgentStatus.DEAD]).filter(Exists(work))
    for room_id, role in list(away.values_list("agent__room_id", "agent__role")):
        wake_up(room_id, role=role)


@dataclass(frozen=True)
class Vouched:
    """What a heartbeat found: runs that are not the current ones any more, and current ones whose agent had been declared dead."""

    superseded: list[int]
    dead: list[int]


def vouch(machine_id: int, *, runs: list[Any]) -> Vouched:
    """One heartbeat, one UPDATE however many agents it carries: their processes live, so the working ones stay so.

    Rows that are locked now are being changed by somebody who knows more; the next heartbeat finds them.
    """
    asked = [run for run in runs if read_id(run)][:MAX_RUNS]
    current = Placement.objects.filter(machine_id=machine_id, mode=Mode.LOOP, current_run__in=asked, current_run__state__in=UNFINISHED)
    rows = list(current.values_list("current_run_id", "agent_id", "agent__status", "agent__incarnation"))
    joined = [row for row in rows if row[3] == run_incarnation(row[0])]
    renew_working({agent_id: incarnation for _, agent_id, status, incarnation in joined if status == AgentStatus.WORKING})
    dead = [run for run, _, status, _ in joined if status == AgentStatus.DEAD]
    known = {row[0] for row in rows}
    return Vouched([run for run in asked if run not in known], dead)


def renew_working(incarnations: dict[int, str]) -> None:
    if not incarnations:
        return
    with transaction.atomic():
        working = Agent.objects.filter(pk__in=incarnations, incarnation__in=incarnations.values(), status=AgentStatus.WORKING)
        locked = working.order_by("pk").select_for_update(skip_locked=True, of=("self",)).values("pk")
        lease = now() + timedelta(seconds=settings.HEARTBEAT_TTL)
        Agent.objects.filter(pk__in=locked).update(lease_expires_at=lease, last_seen_at=now())


def resume_dead(machine: Machine, runs: Iterable[int], *, is_back: bool = False) -> None:
    """Declared dead, but their processes live: back with their claim, where nobody took it.

    Without one only when the machine itself was away: an agent that just does not wait for work must not rise and die in turns.
    """
    for run in Run.objects.filter(pk__in=list(runs)).select_related("agent"):
        with room_locked(run.agent.room_id):
            agent = lock_agent(run.agent.room_id, pk=run.agent_id)
            if agent.incarnation == run.incarnation and agent.status == AgentStatus.DEAD and (is_back or resumable_claim(agent)):
                revive(agent, actor=machine.name)


def oldest_sign() -> datetime:
    return now() - timedelta(seconds=settings.DAEMON_TTL)


def silent_machines(oldest: Any) -> Q:
    """For the sweep: machines whose socket's web process is gone."""
    return ~Q(status=MachineStatus.DISCONNECTED) & Q(last_seen_at__lt=oldest)
