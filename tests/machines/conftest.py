"""alice's laptop-7 is connected, and the builder of the room lives there."""

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import Agent
from chatroom.models import Pulse, Room
from machines.models import Machine
from machines.services.registration import register_machine
from tests.api.conftest import live, static_root  # noqa: F401  (fixtures)
from tests.factories import make_machine, make_placement

from .playing import Daemon
from .sockets import machine_of


@pytest.fixture
def machine(alice: User) -> Machine:
    return make_machine(alice)


@pytest.fixture
def daemon(machine: Machine, room: Room) -> Daemon:
    """Its builder was never started: offline, on demand, generation 0."""
    make_placement(machine, Agent.objects.get(room=room, role="builder"))
    return Daemon(machine, room)


@pytest.fixture
def token(alice: User, room: Room) -> str:
    """Of laptop-9, which is to look after the room's builder."""
    machine, secret = register_machine("laptop-9", platform="", owner=alice)
    make_placement(machine, Agent.objects.get(room=room, role="builder"))
    Pulse.objects.create(pk=1, beat_at=now() + timedelta(seconds=10), quiet_until=now() - timedelta(seconds=1))
    return secret


@pytest.fixture
def played(token: str, room: Room) -> Daemon:
    return Daemon(machine_of(), room)
