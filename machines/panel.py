"""What machines add to an agent on a room's page: where it lives, what its process does, its buttons, and what became of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Count, Max, Q
from django.utils.timezone import now

from agents.models import Agent, AgentKind, AgentStatus
from agents.models.agent import LIVE
from agents.panel import Extra
from chatroom.models import Room
from chatroom.panel import Card, Goings
from machines.models import Act, Command, CommandState, Machine, MachineStatus, Placement, Run, RunState
from machines.models.command import IN_FLIGHT

S = AgentStatus
DEAD = {S.DEAD, S.DEAD_FAILED_REVIVE}
DAY = timedelta(hours=24)
SHOWN_LINES = 8
# Of people's acts; what the system does by itself is told by the agent's own status.
PRESSED = [Act.START, Act.STOP, Act.RESTART, Act.ABORT]


@dataclass(frozen=True)
class Button:
    """One that `asks` opens a line with the question, for it ends what goes on."""

    act: str
    label: str
    asks: str = ""
    look: str = ""


START = Button("start", "Start", look="filled")
STOP = Button("stop", "Stop", asks="Its process ends, its task goes back to the queue; nothing starts it but a person.", look="red")
RESTART = Button("restart", "Restart", asks="Its process ends and begins anew; its task goes back to the queue.", look="red")
RESTART_AT_ONCE = Button("restart", "Restart", look="filled")
ABORT = Button("abort", "Abort", asks="Its process ends, and its task fails as aborted.", look="red")
BUTTONS: dict[str, list[Button]] = {
    S.OFFLINE: [START],
    S.READY: [RESTART, STOP],
    S.WORKING: [ABORT, RESTART, STOP],
    S.RESTARTING: [STOP],
    S.DEAD: [RESTART_AT_ONCE, STOP],
    S.DEAD_FAILED_REVIVE: [RESTART_AT_ONCE],
}


@dataclass
class CommandLine:
    """What became of the newest press."""

    command: Command
    machine: Machine
    role: str

    @property
    def is_in_flight(self) -> bool:
        return self.command.state in IN_FLIGHT

    @property
    def is_done(self) -> bool:
        """As one would expect: it takes no line of its own."""
        usual = {f"{self.role} is running", "no process is left"}
        return self.command.state == CommandState.COMPLETED and self.command.outcome in usual

    @property
    def look(self) -> str:
        return {CommandState.COMPLETED: "done", CommandState.FAILED: "error"}.get(CommandState(self.command.state), "")

    @property
    def waits_for_machine(self) -> bool:
        return self.is_in_flight and not self.machine.is_connected


@dataclass
class Home:
    """Where a remote agent lives, and how it is there."""

    agent: Agent
    placement: Placement
    command: CommandLine | None = None
    restarts: int = 0

    @property
    def machine(self) -> Machine:
        return self.placement.machine

    @property
    def run(self) -> Run | None:
        return self.placement.current_run

    @property
    def is_running(self) -> bool:
        return self.run is not None and not self.run.is_finished

    @property
    def harness(self) -> str:
        return f"{self.placement.harness} {self.placement.model}".strip()

    @property
    def process(self) -> str:
        """`running, pid 48113`"""
        if self.run is None or self.run.is_finished:
            return "no process"
        pid = f", pid {self.run.pid}" if self.run.pid else ""
        stopped = ", frozen (SIGSTOP)" if self.run.is_frozen else ", stopped (SIGSTOP)" if self.run.stopped_at else ""
        return f"{self.run.state}{pid}{stopped}"

    @property
    def attempt(self) -> str:
        placement = self.placement
        if placement.restart_attempt and placement.restart_attempts:
            return f"attempt {placement.restart_attempt} of {placement.restart_attempts}"
        return f"attempt {self.run.attempt}" if self.run is not None and self.is_running and self.run.attempt > 1 else ""

    @property
    def restart_at(self) -> datetime | None:
        return self.placement.restart_at if self.agent.status == S.RESTARTING else None

    @property
    def doubt(self) -> str:
        """Its status is what was known last."""
        is_doubted = not self.machine.is_connected and (self.agent.is_live or self.agent.status == S.RESTARTING)
        return f"{self.machine} is away" if is_doubted else ""

    @property
    def last_lines(self) -> list[str]:
        run = self.run
        return run.last_lines[-SHOWN_LINES:] if run is not None and run.state == RunState.FAILED else []

    @property
    def move(self) -> str:
        """What comes after its end: `then it moves to desk`."""
        wish = self.placement.moving["wish"] if self.placement.moving else {}
        if wish.get("kind") == AgentKind.CUSTOM:
            return "then it is a custom agent"
        return f"then it moves to {wish['machine']}" if wish.get("machine") else "then it is changed" if wish else ""

    @property
    def is_stopping(self) -> bool:
        return self.placement.is_stopped and self.agent.status != S.OFFLINE

    @property
    def buttons(self) -> list[Button]:
        if self.machine.is_revoked:
            return []  # nothing can be done there any more: it is configured to live elsewhere
        if self.is_stopping:
            return [START]  # whoever wants it back need not wait for its end
        found = BUTTONS[S(self.agent.status)]
        return [button for button in found if button is not ABORT or self.is_running]


def agent_extras(agents: list[Agent]) -> Mapping[int, Extra]:
    """A fixed number of queries, however many."""
    placed = {found.agent_id: found for found in Placement.objects.filter(agent__in=agents).select_related("machine", "current_run")}
    commands, restarts = newest_commands(placed), count_restarts(placed)
    extras = {}
    for agent in agents:
        placement = placed.get(agent.pk)
        if agent.kind != AgentKind.REMOTE or placement is None:
            extras[agent.pk] = Extra({"home": None}, more="machines/_agent_more.html")
            continue
        command = commands.get(agent.pk)
        shown = CommandLine(command, placement.machine, agent.role) if command is not None and is_worth_showing(command) else None
        extras[agent.pk] = describe_home(Home(agent, placement, shown, restarts.get(agent.pk, 0)))
    return extras


def describe_home(home: Home) -> Extra:
    has_when = home.agent.status == S.RESTARTING and bool(home.attempt)
    return Extra(
        {"home": home},
        line="machines/_agent_line.html",
        when="machines/_agent_when.html" if has_when else "",
        card="machines/_agent_card.html",
        acts="machines/_agent_acts.html",
        more="machines/_agent_more.html",
        is_doubted=bool(home.doubt),
        has_lines=bool(home.last_lines),
    )


def newest_commands(agent_ids: Iterable[int]) -> dict[int, Command]:
    pressed = Command.objects.filter(agent__in=list(agent_ids), act__in=PRESSED).order_by()
    newest = pressed.values("agent").annotate(last=Max("pk")).values("last")
    return {int(command.agent_id or 0): command for command in Command.objects.filter(pk__in=newest)}


def is_worth_showing(command: Command) -> bool:
    """Starts that the system made, and that went well, or were overtaken, are nobody's press."""
    return command.actor != "chatroom" or command.state not in (CommandState.COMPLETED, CommandState.CANCELLED)


def count_restarts(agent_ids: Iterable[int]) -> dict[int, int]:
    """Ends of the last 24 h that nobody had asked for."""
    ended = Run.objects.filter(agent__in=list(agent_ids), ended_at__gt=now() - DAY, verdict__in=["faulty", "transient"])
    return dict(ended.order_by().values_list("agent").annotate(count=Count("pk")))


# --- a machine that is away needs a person, when agents of the room live on it


def lost_in(rooms: Iterable[Any]) -> Any:
    """Placements whose agents' status nobody can confirm."""
    away = Q(machine__status=MachineStatus.DISCONNECTED, agent__status__in=[*LIVE, S.RESTARTING])
    return Placement.objects.filter(away, agent__room__in=list(rooms))


def machine_cards(room: Room) -> Iterable[Card]:
    roles: dict[int, list[str]] = {}
    machines: dict[int, Machine] = {}
    for placement in lost_in([room]).select_related("machine", "agent").order_by("machine__name", "agent_id"):
        roles.setdefault(placement.machine_id, []).append(placement.agent.role)
        machines[placement.machine_id] = placement.machine
    for machine_id, machine in machines.items():
        row = {"machine": machine, "roles": roles[machine_id]}
        yield Card(f"attention-machine-{machine_id}", "machines/_machine_card.html", {"row": row}, 5, machine.status_since)


def machine_goings(goings: dict[int, Goings]) -> None:
    counted = lost_in(goings).order_by().values_list("agent__room").annotate(count=Count("machine", distinct=True))
    for room_id, count in counted:
        goings[room_id].attention += count
