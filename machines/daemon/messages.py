"""What the server says, as objects; a message that does not say what it must raises `BadMessage`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from machines.daemon.errors import DaemonError
from machines.daemon.policy import Desired, Exit, Verdict, Wanted

PROTOCOL = 1


class BadMessage(DaemonError):
    """The server said something this daemon does not understand."""


def required(content: Mapping[str, Any], name: str, kind: type) -> Any:
    found = content.get(name)
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise BadMessage(f"{name} = {found!r}: expected {kind.__name__}")
    return found


def optional_int(content: Mapping[str, Any], name: str) -> int | None:
    return None if content.get(name) is None else int(required(content, name, int))


@dataclass(frozen=True)
class PastExit:
    """An exit of before, by the server's record; `age` in seconds when the message came."""

    run: int
    generation: int
    age: float
    joined: bool
    verdict: Verdict

    def at(self, now: float) -> Exit:
        return Exit(run=self.run, at=now - self.age, joined=self.joined, verdict=self.verdict, generation=self.generation)


@dataclass(frozen=True)
class AgentEntry:
    """One agent of this machine, as the server wants it."""

    agent: int
    room: str
    role: str
    mode: str
    desired: Desired
    generation: int
    exhausted: int | None
    command: int | None
    run: int | None
    joined: bool
    history: tuple[PastExit, ...]

    @property
    def wanted(self) -> Wanted:
        return Wanted(generation=self.generation, desired=self.desired, exhausted=self.exhausted, mode=self.mode)

    @property
    def name(self) -> str:
        return f"{self.role} in {self.room}"

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "AgentEntry":
        desired = required(content, "desired", str)
        if desired not in get_args(Desired):
            raise BadMessage(f"desired = {desired!r}: expected {', '.join(get_args(Desired))}")
        return cls(
            agent=required(content, "agent", int),
            room=required(content, "room", str),
            role=required(content, "role", str),
            mode=required(content, "mode", str),
            desired=cast(Desired, desired),
            generation=required(content, "generation", int),
            exhausted=optional_int(content, "exhausted"),
            command=optional_int(content, "command"),
            run=optional_int(content, "run"),
            joined=bool(content.get("joined")),
            history=tuple(parse_exit(one) for one in content.get("history", [])),
        )


def parse_exit(content: Mapping[str, Any]) -> PastExit:
    verdict = required(content, "verdict", str)
    if verdict not in get_args(Verdict):
        raise BadMessage(f"verdict = {verdict!r}: expected {', '.join(get_args(Verdict))}")
    return PastExit(
        run=required(content, "run", int),
        generation=required(content, "generation", int),
        age=float(content.get("age", 0.0)),
        joined=bool(content.get("joined")),
        verdict=cast(Verdict, verdict),
    )


@dataclass(frozen=True)
class Grant:
    """A run the server has opened: everything its process needs."""

    run: int
    agent: int
    generation: int
    attempt: int
    token: str
    room: str
    role: str
    mode: str
    harness: str
    model: str
    directory: str
    prompt: str

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Grant":
        words: dict[str, Any] = {name: required(content, name, str) for name in ("token", "room", "role", "mode", "harness")}
        numbers: dict[str, Any] = {name: required(content, name, int) for name in ("run", "agent", "generation", "attempt")}
        blank: dict[str, Any] = {name: str(content.get(name) or "") for name in ("model", "directory", "prompt")}
        return cls(**words, **numbers, **blank)


@dataclass(frozen=True)
class Settings:
    """Numbers of the server's choosing."""

    heartbeat_interval: float = 30.0
    stop_grace: float = 5.0
    stop_hard: float = 15.0
    log_retention: float = 30 * 86400.0

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "Settings":
        return cls(**{name: float(content[name]) for name in cls.__dataclass_fields__ if name in content})
