"""`/api/v1/machines/…` and `commands/…`: what a machine does for one room is none of another's business."""

import pytest
from django.contrib.auth.models import User

from agents.models import Agent
from chatroom.db import in_db
from chatroom.models import Room
from machines.models import Act, Command, Machine
from machines.services.desire import start_agent
from tests.api.conftest import ask
from tests.factories import make_placement, make_room, token_of

pytestmark = pytest.mark.usefixtures("live")


@pytest.fixture
def elsewhere(machine: Machine, charlie: User) -> Room:
    """charlie's room, whose builder lives on alice's laptop-7, too."""
    room = make_room(charlie, name="Elsewhere")
    make_placement(machine, Agent.objects.get(room=room, role="builder"))
    return room


@pytest.mark.scenario(77)
async def test_a_command_is_seen_only_in_the_room_of_its_agent(machine: Machine, elsewhere: Room, alice: User, charlie: User) -> None:
    command = await in_db(start_agent, elsewhere.pk, role="builder", actor="charlie")
    seen = {user: (await ask("GET", f"/api/v1/commands/{command.pk}", token=token_of(user))).status for user in (alice, charlie)}
    assert seen == {alice: 404, charlie: 200}


@pytest.mark.scenario(77)
@pytest.mark.parametrize("act", ["ping", "status"])
async def test_a_machine_answers_its_owner_alone(act: str, machine: Machine, elsewhere: Room, alice: User, charlie: User) -> None:
    """The answer names every room that the machine works for."""
    asked = {user: (await ask("POST", f"/api/v1/machines/laptop-7/{act}", token=token_of(user))).status for user in (alice, charlie)}
    assert asked == {alice: 200, charlie: 404}
    command = await in_db(Command.objects.get, act__in=[Act.PING, Act.STATUS])
    seen = {user: (await ask("GET", f"/api/v1/commands/{command.pk}", token=token_of(user))).status for user in (alice, charlie)}
    assert seen == {alice: 200, charlie: 404}
