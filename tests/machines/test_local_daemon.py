"""What `up` prepares for the daemon it brings along, and the message that the demo room offers."""

import json
import socket
import sys
from pathlib import Path

import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client

from chatroom.models import Room
from chatroom.services.messages import send_message
from machines.daemon.harnesses import load
from machines.local_daemon import follow_server, free_name, write_harnesses
from machines.models import Machine
from machines.offer import BUILDER
from machines.services.registration import register_machine
from machines.services.revocation import revoke_machine
from tests.factories import make_machine, make_placement

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def credentials(tmp_path: Path, alice: User) -> Path:
    """Of this home's machine, as its daemon keeps them."""
    machine, token = register_machine("laptop", platform="Linux", owner=alice)
    file = tmp_path / "machine.json"
    file.write_text(json.dumps({"server": HERE, "id": machine.pk, "name": "laptop", "token": token}))
    return file


def test_the_machine_follows_its_server_to_another_port(credentials: Path) -> None:
    assert follow_server(credentials, url=HERE) == "laptop"
    assert follow_server(credentials, url="http://127.0.0.1:9000") == "laptop"
    found = json.loads(credentials.read_text())
    assert (found["server"], credentials.stat().st_mode & 0o777) == ("http://127.0.0.1:9000", 0o600)


def test_credentials_of_another_database_are_forgotten(credentials: Path, alice: User) -> None:
    found = json.loads(credentials.read_text())
    credentials.write_text(json.dumps({**found, "token": "of another server"}))
    assert follow_server(credentials, url=HERE) == ""
    assert not credentials.exists()


@pytest.mark.scenario(43)
def test_damaged_credentials_are_set_aside(credentials: Path) -> None:
    credentials.write_text("{")
    assert follow_server(credentials, url=HERE) == ""
    assert len(list(credentials.parent.glob("machine.json.damaged-*"))) == 1


def test_a_revoked_machine_keeps_its_name_so_that_it_is_not_added_anew_by_itself(credentials: Path, alice: User) -> None:
    revoke_machine(Machine.objects.get(name="laptop"), actor="alice")
    assert follow_server(credentials, url=HERE) == "laptop"


def test_a_host_whose_name_is_taken_gets_a_number(alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Alice's laptop.example.org")
    assert free_name() == "Alice-s-laptop"
    make_machine(alice, "Alice-s-laptop")
    make_machine(alice, "Alice-s-laptop-2")
    assert free_name() == "Alice-s-laptop-3"


def test_the_harnesses_are_written_once_and_follow_a_python_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "harnesses.toml"
    write_harnesses(file)
    assert {name: harness.problem() for name, harness in load(file).items()} == {"demo-builder": "", "demo-reviewer": ""}
    monkeypatch.setattr(sys, "executable", "/moved/python")
    write_harnesses(file)
    assert load(file)["demo-builder"].command[0] == "/moved/python"
    mine = file.read_text() + '\n[harnesses.mine]\ncommand = ["mine"]\n'
    file.write_text(mine)
    monkeypatch.setattr(sys, "executable", "/moved/again")
    write_harnesses(file)
    assert file.read_text() == mine


@pytest.fixture
def demo_room(room: Room, alice: User) -> Room:
    builder = room.agents.get(role="builder")
    builder.kind = "remote"
    builder.save()
    make_placement(make_machine(alice), builder, harness=BUILDER)
    return room


def page(room: Room, user: User) -> str:
    Path(settings.STATIC_ROOT).mkdir(parents=True, exist_ok=True)  # whitenoise warns without it
    client = Client()
    client.force_login(user)
    return client.get(f"/rooms/{room.slug}/").content.decode()


def test_the_demo_room_offers_its_first_message_until_somebody_has_said_something(demo_room: Room, alice: User, bob: User) -> None:
    assert "See it work." in page(demo_room, bob)
    send_message(demo_room.pk, text="hello", author=alice)
    assert "See it work." not in page(demo_room, bob)


def test_a_viewer_is_offered_nothing_to_send(demo_room: Room, vera: User) -> None:
    assert "See it work." not in page(demo_room, vera)


def test_another_room_offers_nothing(room: Room, alice: User) -> None:
    assert "See it work." not in page(room, alice)
