"""Wakes whoever holds a machine's socket, watches a run's output, or looks at their machines, after commit."""

from functools import partial

from django.db import transaction

from chatroom.events import room_changed


def topic_of(machine_id: int) -> str:
    return f"machine.{machine_id}"


def machine_changed(machine_id: int) -> None:
    transaction.on_commit(partial(room_changed, topic_of(machine_id)))


def topic_of_log(run_id: int) -> str:
    return f"run.{run_id}"


def log_changed(run_id: int) -> None:
    transaction.on_commit(partial(room_changed, topic_of_log(run_id)))


def topic_of_fleet(user_id: int) -> str:
    return f"fleet.{user_id}"


def fleet_changed(user_id: int) -> None:
    """A machine of this person's came or went."""
    transaction.on_commit(partial(room_changed, topic_of_fleet(user_id)))
