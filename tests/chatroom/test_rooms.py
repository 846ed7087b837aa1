"""Rooms, their teams and their members."""

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentKind, AgentStatus
from chatroom.errors import Invalid, NotAllowed
from chatroom.models import Event, MemberRole, Membership, Room
from chatroom.services.rooms import add_member, create_room

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(
    ("team", "roles"),
    [
        ("solo", ["builder"]),
        ("pair", ["builder", "reviewer"]),
        ("squad", ["planner", "builder", "reviewer"]),
        ("painter, poet", ["painter", "poet"]),
        (["a", "b-1"], ["a", "b-1"]),
    ],
)
def test_a_room_has_its_team_an_owner_and_an_agent_for_each_role(alice: User, team: str | list[str], roles: list[str]) -> None:
    room = create_room(" My  first room ", team=team, owner=alice)
    assert (room.name, room.slug, room.team, room.entry_role) == ("My first room", "my-first-room", roles, roles[0])
    assert Membership.objects.get().role == MemberRole.OWNER
    agents = Agent.objects.filter(room=room).order_by("pk")
    assert [agent.role for agent in agents] == roles
    assert {(agent.kind, agent.status) for agent in agents} == {(AgentKind.CUSTOM, AgentStatus.OFFLINE)}
    assert Event.objects.get().name == "room.create"


def test_rooms_of_the_same_name_have_addresses_of_their_own(alice: User) -> None:
    slugs = [create_room("Demo", team="solo", owner=alice).slug for _ in range(3)]
    assert slugs == ["demo", "demo-2", "demo-3"]


@pytest.mark.parametrize("name", ["123", "日本", "!!!", "-x", "x" * 120])
def test_every_address_begins_with_a_letter(alice: User, name: str) -> None:
    slug = create_room(name, team="solo", owner=alice).slug
    assert slug[0].isalpha()
    assert len(slug) <= 80
    assert Room.objects.find(slug).name == name


@pytest.mark.parametrize("name", ["", "  ", "x" * 121, "a\0b", "a\x1bb", "\ud800"])
def test_a_name_that_is_none_is_refused(alice: User, name: str) -> None:
    with pytest.raises(Invalid, match="room name"):
        create_room(name, team="solo", owner=alice)
    assert not Room.objects.exists()


@pytest.mark.parametrize("team", ["", ",", "user", "chatroom", "Builder", "a,a", "a b", "x" * 41, "1a", ["a", 1], [], [""]])
def test_a_team_that_is_none_is_refused(alice: User, team: str | list[str]) -> None:
    with pytest.raises(Invalid, match="expected"):
        create_room("Demo", team=team, owner=alice)
    assert not Room.objects.exists()


def test_a_person_is_added_and_their_role_changed(room: Room, charlie: User) -> None:
    for role in ("viewer", "member", "owner"):
        assert add_member(room, user=charlie, role=role, actor="alice").role == role
    assert Event.objects.filter(trigger="add_member").count() == 3
    assert Membership.objects.filter(user=charlie).count() == 1


def test_the_last_owner_stays(room: Room, alice: User, bob: User) -> None:
    with pytest.raises(NotAllowed, match="only owner"):
        add_member(room, user=alice, role="member", actor="alice")
    add_member(room, user=bob, role="owner", actor="alice")
    assert add_member(room, user=alice, role="member", actor="bob").role == "member"


def test_an_unknown_role_of_a_member_is_refused(room: Room, charlie: User) -> None:
    with pytest.raises(Invalid) as refusal:
        add_member(room, user=charlie, role="king", actor="alice")
    assert refusal.value.allowed == ["owner", "member", "viewer"]
