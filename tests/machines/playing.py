"""A daemon, and the programs it starts, played at the level of the services."""

import secrets
from dataclasses import dataclass
from typing import Any

from agents.models import Agent, Claim, run_incarnation
from agents.services import confirm_delivery, offer_next, start_task
from agents.services.presence import Hello, join_agent
from chatroom.models import Event, Notice, Room, TokenKind
from chatroom.principals import Principal
from machines.models import Command, Desired, Machine, Placement, Run
from machines.services.desire import start_agent
from machines.services.opening import open_run
from machines.services.reports import receive_report

ROLE = "builder"


def run_principal(run: Run) -> Principal:
    return Principal(0, TokenKind.AGENT, None, run.agent.room_id, run.agent.role, run.pk)


@dataclass
class Daemon:
    """Of one machine. What it opens is of the current generation, unless told otherwise."""

    machine: Machine
    room: Room
    role: str = ROLE

    @property
    def agent(self) -> Agent:
        return Agent.objects.get(room=self.room, role=self.role)

    @property
    def placement(self) -> Placement:
        return Placement.objects.select_related("machine", "agent", "current_run").get(agent=self.agent)

    @property
    def run(self) -> Run:
        return Run.objects.select_related("agent__room", "machine").filter(agent=self.agent).latest("pk")

    @property
    def command(self) -> Command:
        return Command.objects.filter(agent=self.agent).latest("pk")

    def ask(self, **fields: Any) -> dict[str, Any]:
        wish = {"agent_id": self.agent.pk, "generation": self.placement.generation, "attempt": 1, "request": secrets.token_hex(8)}
        return open_run(self.machine, server_url="http://testserver", **{**wish, **fields})

    def open(self, **fields: Any) -> Run:
        """Started by alice, where nobody had."""
        if self.placement.desired_state != Desired.RUNNING:
            start_agent(self.room.pk, role=self.role, actor="alice")
        return Run.objects.select_related("agent__room", "machine").get(pk=self.ask(**fields)["run"])

    def report(self, name: str, run: Run | None = None, **fields: Any) -> str | None:
        """The reason, where it is rejected."""
        about = {"run": run.pk, "generation": run.generation} if run else {"generation": self.placement.generation}
        key = fields.pop("key", f"{name}:{secrets.token_hex(4)}")
        return receive_report(self.machine, {"report": name, "key": key, "agent": self.agent.pk, **about, "age": 0.0, **fields})

    def launch(self, run: Run, *, pid: int = 4711) -> Run:
        for name, fields in [("run.validated", {}), ("run.preparing", {}), ("run.launched", {"pid": pid})]:
            assert self.report(name, run, **fields) is None
        return self.run

    def start(self) -> Run:
        """A run that has joined: the agent is ready."""
        run = self.launch(self.open())
        Program(run).join()
        return self.run

    def exit(self, run: Run, code: int | None = 3, *, do: str = "restart", **fields: Any) -> str | None:
        """A process that ended, by itself unless `asked`, and what the policy decided."""
        asked, verdict = fields.get("asked"), fields.pop("verdict", "")
        verdict = verdict or ("asked" if asked and asked != "deadline" else "faulty")
        decision: dict[str, Any] = {"do": do, "verdict": verdict}
        if do == "restart":
            decision |= {"in": 3.0, "attempt": 2, "attempts": 3}
        elif do == "exhausted":
            decision |= {"reason": "3 of 3 attempts failed"}
        failure = "asked" if asked else "crash"
        ended = {
            "code": code,
            "signal": None,
            "asked": None,
            "failure": failure,
            "message": f"ended with exit code {code}",
            "lines": ["last line"],
        }
        return self.report("run.exited", run, decision=decision, **{**ended, **fields})

    def fail(self, run: Run, message: str = "harness demo: program not found", **fields: Any) -> str | None:
        """A run that never got as far as a process: exhausted at once."""
        decision = {"do": "exhausted", "reason": message, "verdict": "faulty"}
        told = {"stage": "validating", "failure": "validation", "message": message, "lines": [], "decision": decision}
        return self.report("run.failed", run, **{**told, **fields})

    def stopped(self, **fields: Any) -> str | None:
        return self.report("agent.stopped", **fields)


@dataclass
class Program:
    """What a run's process does."""

    run: Run
    connection: str = ""

    def join(self, *, joined: bool = False) -> "Program":
        self.connection = secrets.token_hex(8)
        hello = Hello(role=self.run.agent.role, incarnation=run_incarnation(self.run.pk), connection=self.connection, joined=joined)
        join_agent(self.run.agent.room, hello=hello, principal=run_principal(self.run))
        return self

    def take(self, *, start: bool = True, received: bool = True) -> Claim:
        """The pending task, offered, received and started."""
        room_id, incarnation = self.run.agent.room_id, run_incarnation(self.run.pk)
        offer = offer_next(self.run.agent_id, room_id=room_id, incarnation=incarnation, connection=self.connection)
        assert offer is not None
        if received:
            assert confirm_delivery(offer.claim, room_id=room_id, incarnation=incarnation)
        if start:
            start_task(room_id, offer.claim, principal=run_principal(self.run))
        return Claim.objects.select_related("task", "agent").get(key=offer.claim)


def working(daemon: Daemon) -> Claim:
    """A started run that holds the pending task."""
    return Program(daemon.start()).join(joined=True).take()


def triggers(subject: Any, *, since: int = 0) -> list[str]:
    """What happened to it, in order."""
    name = type(subject)._meta.model_name
    return list(Event.objects.filter(subject=name, subject_id=subject.pk, pk__gt=since).order_by("pk").values_list("trigger", flat=True))


def newest_event() -> int:
    return Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0


def told(room: Room) -> list[str]:
    return list(Notice.objects.filter(room=room).order_by("pk").values_list("text", flat=True))
