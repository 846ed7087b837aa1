"""The form by which an owner says where an agent lives, fed by what the machine really offers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.contrib.auth.models import User

from agents.models import Agent, AgentKind
from machines.fleet import shown_harnesses
from machines.models import Machine, Placement, Run


@dataclass
class ConfigurationForm:
    agent: Agent
    kind: str
    machines: list[Machine]
    machine: Machine | None = None
    harness: str = ""
    model: str = ""
    directory: str = ""
    must_force: bool = False
    lives_on: str = ""
    is_forced: bool = False
    harnesses: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, agent: Agent, *, user: User, chosen: Mapping[str, str]) -> "ConfigurationForm":
        """As it is configured; what was chosen in the form already, but not saved, comes first."""
        placement = Placement.objects.filter(agent=agent).select_related("machine").first()
        machines = list(Machine.objects.owned_by(user))
        home = placement.machine if placement is not None and not placement.machine.is_revoked else None
        if home is not None and home not in machines:
            machines.append(home)
        current = home or (machines[0] if len(machines) == 1 else None)
        machine = next((found for found in machines if found.name == chosen.get("machine")), current)
        form = cls(agent, chosen.get("kind") or agent.kind, machines, machine)
        for name in ("harness", "model", "directory"):
            setattr(form, name, chosen.get(name, getattr(placement, name, "")))
        form.harnesses = shown_harnesses(machine) if machine else []
        if form.has_unknown_harness and machine != current:
            form.harness = form.model = ""  # what another machine offers
        if placement is not None and has_process(agent):
            form.must_force, form.lives_on = not placement.machine.is_connected, placement.machine.name
        form.is_forced = "force" in chosen
        return form

    @property
    def is_remote(self) -> bool:
        return self.kind == AgentKind.REMOTE

    @property
    def models(self) -> list[str]:
        return next((found.get("models", []) for found in self.harnesses if found["name"] == self.harness), [])

    @property
    def allow_dirs(self) -> list[str]:
        return self.machine.allow_dirs if self.machine else []

    @property
    def has_unknown_harness(self) -> bool:
        """It is configured, but the machine does not offer it (any more)."""
        return bool(self.harness) and self.harness not in [found["name"] for found in self.harnesses]


def has_process(agent: Agent) -> bool:
    return Run.objects.unfinished().filter(agent=agent).exists()


def given_configuration(posted: Mapping[str, str]) -> dict[str, Any]:
    """What the service takes. The fields of remote agents are nothing to a custom one."""
    given: dict[str, Any] = {"kind": posted.get("kind") or None, "force": "force" in posted}
    if given["kind"] == AgentKind.REMOTE:
        given |= {name: posted[name].strip() for name in ("model", "directory") if name in posted}
        given |= {name: posted[name].strip() or None for name in ("machine", "harness") if name in posted}
    return given
