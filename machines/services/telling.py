"""What a daemon is told, and what it shows: snapshots, commands, the tail of its agents' output."""

from typing import Any

from django.db import models
from django.db.models import F

from chatroom.events import move
from chatroom.prepared import Prepared
from chatroom.services.rooms import room_locked
from chatroom.unit import one_unit
from machines import hints
from machines.models import Command, CommandState, Placement, Run, RunLog
from machines.untrusted import clean_text, read_id

from .desire import LOCKED_COMMAND
from .runs import histories


def snapshot(machine_id: int, *, agent_id: int | None = None) -> list[dict[str, Any]]:
    """Every remote agent placed on this machine, or this one of them, as it is wanted now. Three queries, however many."""
    placements = list(ALL_PLACED.rows(machine=machine_id) if agent_id is None else ONE_PLACED.rows(machine=machine_id, agent=agent_id))
    commands = dict(COMMANDS_IN_FLIGHT.plain_rows(machine=machine_id))
    past = histories(placements)
    return [
        describe_placement(placement, command=commands.get(placement.agent_id), history=past[placement.agent_id])
        for placement in placements
    ]


def placed(machine: Any) -> models.QuerySet[Placement]:
    found = Placement.objects.filter(machine=machine).select_related("current_run").order_by("agent_id")
    return found.annotate(room_slug=F("agent__room__slug"), role=F("agent__role"))


ALL_PLACED = Prepared[Placement](placed)
ONE_PLACED = Prepared[Placement](lambda machine, agent: placed(machine).filter(agent=agent))
COMMANDS_IN_FLIGHT = Prepared[Command](
    lambda machine: Command.objects.in_flight().filter(machine=machine).order_by("pk").values_list("agent_id", "pk")
)
PLACED = Prepared[Placement](
    lambda machine: (
        Placement.objects.filter(machine=machine)
        .order_by("agent_id")
        .values_list(
            *("agent_id", "mode", "desired_state", "generation", "exhausted_generation"),
            *("current_run", "current_run__joined_at", "current_run__ended_at"),
        )
    )
)
IN_FLIGHT = Prepared[Command](lambda machine: Command.objects.in_flight().filter(machine=machine).order_by("pk").values_list("pk", "state"))


def glance(machine_id: int) -> tuple[Any, ...]:
    """Another one whenever the snapshot has changed: two narrow queries, for the looks that hardly ever find anything."""
    return (*PLACED.plain_rows(machine=machine_id), *IN_FLIGHT.plain_rows(machine=machine_id))


def describe_placement(placement: Placement, *, command: int | None, history: list[dict[str, Any]]) -> dict[str, Any]:
    run = placement.current_run
    return {
        "agent": placement.agent_id,
        "room": vars(placement)["room_slug"],
        "role": vars(placement)["role"],
        "mode": placement.mode,
        "desired": placement.desired_state,
        "generation": placement.generation,
        "exhausted": placement.exhausted_generation,
        "command": command,
        "run": run.pk if run and not run.is_finished else None,
        "joined": bool(run and not run.is_finished and run.joined_at),
        "history": history,
    }


def dispatch_commands(machine_id: int) -> list[dict[str, Any]]:
    """The commands nobody was sent yet, as messages. A lost one is in the next snapshot."""
    waiting = list(UNSENT.rows(machine=machine_id))
    return [message for found in waiting if (message := dispatch(found)) is not None]


UNSENT = Prepared[Command](
    lambda machine: Command.objects.in_flight().filter(machine=machine, state=CommandState.PENDING).select_related("agent").order_by("pk")
)


def dispatch(found: Command) -> dict[str, Any] | None:
    with one_unit() if found.room_id is None else room_locked(found.room_id):
        command = LOCKED_COMMAND.first(command=found.pk)
        if command is None or command.state != CommandState.PENDING:
            return None
        move(command, "dispatch", actor="chatroom")
        message: dict[str, Any] = {"type": "command", "command": command.pk, "act": command.act}
        if command.run_id is not None:
            return message | {"run": command.run_id}
        if command.agent_id is not None:
            return message | {"agent": snapshot(command.machine_id, agent_id=command.agent_id)[0]}
        return message


def keep_log(machine_id: int, chunks: list[dict[str, Any]]) -> None:
    """The newest 64 KiB of each run's output; a chunk that comes twice adds nothing. One transaction for all of a message."""
    with one_unit():
        for chunk in chunks[:100]:
            offset, text = chunk.get("offset"), chunk.get("text")
            if isinstance(offset, int) and isinstance(text, str):
                run = RUN_THERE.first(run=read_id(chunk.get("run")), machine=machine_id)
                end = chunk["end"] if isinstance(chunk.get("end"), int) else offset + len(text.encode(errors="replace"))
                if run is not None and 0 <= offset <= end < 2**62:
                    add_to_log(run, text, offset=offset, end=end)


RUN_THERE = Prepared[Run](lambda run, machine: Run.objects.filter(pk=run, machine=machine))


def add_to_log(run: Run, text: str, *, offset: int, end: int) -> None:
    log, _ = RunLog.objects.select_for_update().get_or_create(run=run)
    if end <= log.end:
        return
    if offset < log.end:  # a daemon that came back shows the last of it again
        text = text.encode(errors="replace")[log.end - offset :].decode(errors="ignore")
    gap = f"\n… {offset - log.end} bytes left out …\n" if offset > log.end else ""
    log.text, log.end = (log.text + gap + clean_text(text, limit=len(text)))[-RunLog.KEPT :], end
    log.save()
    hints.log_changed(run.pk)
