"""Machines in the admin site: their acts go through the services."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents.models import Agent
from chatroom.models import Event, Room
from machines.models import Command, Desired, Machine, Placement
from tests.factories import make_machine, make_placement, make_run


@pytest.fixture
def root(page: Client, alice: User) -> Client:
    User.objects.filter(pk=alice.pk).update(is_staff=True, is_superuser=True)
    return page


@pytest.fixture
def placement(alice: User, room: Room) -> Placement:
    return make_placement(make_machine(alice), Agent.objects.get(room=room, role="builder"))


def test_an_agent_is_started_through_the_service(root: Client, placement: Placement) -> None:
    root.post("/admin/machines/placement/", {"action": "start_agent", "_selected_action": [placement.pk]})
    assert Placement.objects.get().desired_state == Desired.RUNNING
    assert Command.objects.get().actor == "alice"
    assert Event.objects.filter(subject="command", trigger="create").count() == 1


def test_a_machine_with_agents_is_not_revoked_here_either(root: Client, placement: Placement) -> None:
    answer = root.post("/admin/machines/machine/", {"action": "revoke", "_selected_action": [placement.machine_id]}, follow=True)
    assert "still has agents" in answer.text
    assert Machine.objects.get().revoked_at is None


def test_a_machine_is_revoked_with_its_agents_by_the_act_that_says_so(root: Client, placement: Placement) -> None:
    root.post("/admin/machines/machine/", {"action": "revoke_with_agents", "_selected_action": [placement.machine_id]})
    assert Machine.objects.get().is_revoked
    assert Placement.objects.get().harness == "demo"


@pytest.mark.parametrize("name", ["machine", "placement", "run", "command"])
def test_nothing_of_machines_can_be_edited_by_hand(root: Client, placement: Placement, name: str) -> None:
    run = make_run(placement, joined=False)
    Command.objects.create(machine=placement.machine, agent=placement.agent, act="start_agent", actor="alice")
    pk = {"machine": placement.machine_id, "placement": placement.pk, "run": run.pk, "command": Command.objects.get().pk}[name]
    assert root.get(f"/admin/machines/{name}/{pk}/change/").status_code == 200
    assert root.post(f"/admin/machines/{name}/{pk}/change/", {"state": "failed", "status": "connected"}).status_code == 403
    assert root.post(f"/admin/machines/{name}/{pk}/delete/", {"post": "yes"}).status_code == 403
