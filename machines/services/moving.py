"""An agent that runs is moved: stopped first, then configured, then started where it lives now. The server knows the procedure."""

from contextlib import suppress
from typing import Any

from django.contrib.auth.models import User

from agents.models import Agent, AgentKind
from agents.services.claims import lock_agent
from chatroom.errors import ChatroomError
from chatroom.events import move
from chatroom.jobs import enqueue, job
from chatroom.services.rooms import room_locked
from machines.models import Act, MachineStatus, Placement, Run

from .configuration import ProcessLives, configure_agent, find_machine, settle_in
from .desire import Locked, lock_placement, make_command, start_agent, stop_agent

HOME = ("harness", "model", "directory", "mode")


def move_agent(room_id: int, *, role: str, user: User, **given: Any) -> Agent:
    """As `configure_agent`; while a process lives, that is stopped first, and the rest happens when its end is known."""
    begun = Placement.objects.filter(agent__room=room_id, agent__role=role, moving__isnull=False)
    if not begun.exclude(machine__status=MachineStatus.DISCONNECTED).exists():
        with suppress(ProcessLives):
            return configure_agent(room_id, role=role, user=user, **given)
    return begin_move(room_id, role=role, user=user, wish=given)


def begin_move(room_id: int, *, role: str, user: User, wish: dict[str, Any]) -> Agent:
    with room_locked(room_id) as room:
        before = lock_placement(room, role).placement
        is_wanted = not before.is_stopped or bool(before.moving and before.moving["starts"])
        require_possible(before, user, wish)
        stop_agent(room_id, role=role, actor=user.get_username())
        locked = lock_placement(room, role)
        locked.placement.moving = {"by": user.pk, "starts": is_wanted, "wish": {**wish, "force": False}}
        locked.placement.save()
        continue_move(locked.placement)
        return lock_agent(room_id, role=role)


def require_possible(placement: Placement, user: User, wish: dict[str, Any]) -> None:
    """Said now, where the button is, and not when the agent has been stopped for nothing. What is set here is not saved."""
    if wish.get("kind") != AgentKind.CUSTOM:
        target = find_machine(user, wish["machine"]) if wish.get("machine") else placement.machine
        settle_in(placement, target, {name: wish.get(name) for name in HOME})


def continue_move(placement: Placement) -> None:
    """Once no process is left. A job, for what was wished may have become impossible, which must not undo the end of the process."""
    if placement.moving is not None and not Run.objects.unfinished().filter(agent=placement.agent_id).exists():
        enqueue("finish_move", agent_id=placement.agent_id)


@job
def finish_move(agent_id: int) -> None:
    placement = Placement.objects.select_related("agent").filter(agent=agent_id).first()
    if placement is None or placement.moving is None:
        return  # somebody wanted something else meanwhile
    room_id, role, moving = placement.agent.room_id, placement.agent.role, placement.moving
    user = User.objects.get(pk=moving["by"])
    try:
        agent = configure_agent(room_id, role=role, user=user, **moving["wish"])
    except ChatroomError as error:
        say_not_moved(room_id, role=role, actor=user.get_username(), why=error.message)
        return
    if moving["starts"] and not agent.is_custom:
        start_agent(room_id, role=role, actor=user.get_username())


def say_not_moved(room_id: int, *, role: str, actor: str, why: str) -> None:
    """As the outcome of a start: it stands in the agent's row."""
    with room_locked(room_id) as room:
        locked: Locked = lock_placement(room, role)
        locked.placement.moving = None
        locked.placement.save()
        outcome = f"{role} was stopped and could not be moved: {why}"
        move(make_command(locked, Act.START, actor=actor), "fail", actor="chatroom", reason=outcome, outcome=outcome)
