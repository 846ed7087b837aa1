"""Short questions to a machine's daemon: does it answer, how is it."""

from django.db import transaction

from chatroom.errors import WrongState
from chatroom.events import move, record_event
from machines import hints
from machines.models import Act, Command, Machine
from machines.models.command import SHORT_LIVED
from machines.untrusted import clean_json


def ask_machine(machine: Machine, act: Act, *, actor: str) -> Command:
    if not machine.is_connected:
        raise WrongState(f"{machine} is disconnected: it can't answer now", current=machine.status)
    with transaction.atomic():
        command = Command.objects.create(machine=machine, act=act, actor=actor)
        record_event(command, "create", actor=actor, room_id=None, to_state=command.state, data={"act": act})
        hints.machine_changed(machine.pk)
    return command


def keep_answer(machine_id: int, command_id: int, data: dict[str, object]) -> None:
    with transaction.atomic():
        asked = Command.objects.select_for_update(of=("self",)).in_flight().filter(machine=machine_id, act__in=SHORT_LIVED)
        found = asked.filter(pk=command_id).first()
        if found is not None:
            found.answer = clean_json(data)
            move(found, "complete", actor=found.machine.name, reason="answered", outcome="answered")
            hints.machine_changed(machine_id)
