"""The main path, at the level of the services: message, claim, handoff, end."""

import pytest
from django.contrib.auth.models import User

from agents.models import Agent, AgentStatus, Claim
from agents.services import handoff
from chatroom.models import Event, Message, Room, Task, TaskStatus
from chatroom.services.messages import send_message
from tests.agents.playing import statuses, take, triggers
from tests.factories import principal_of

pytestmark = pytest.mark.django_db


def test_a_message_travels_from_builder_to_reviewer_to_the_user(room: Room, alice: User) -> None:
    sent = send_message(room.pk, text="Fix it", author=alice)
    done = handoff(room.pk, take(room, alice, "builder"), next_role="reviewer", text="fixed", principal=principal_of(alice))
    assert done.next_task is not None
    handoff(room.pk, take(room, alice, "reviewer"), next_role="user", text="good", principal=principal_of(alice))

    assert statuses(room) == [("builder", "completed"), ("reviewer", "completed")]
    assert set(Agent.objects.values_list("status", flat=True)) == {AgentStatus.READY}
    assert not Claim.objects.open().exists()
    assert Task.objects.get(pk=sent.task.pk).status == TaskStatus.COMPLETED
    assert triggers(sent.task) == ["create", "claim_task", "deliver", "start_task", "complete_task"]
    assert set(Task.objects.values_list("chain", flat=True)) == {sent.message.pk}
    assert list(Message.objects.values_list("sender", "to", "kind")) == [
        ("alice", "", "chat"),
        ("builder", "reviewer", "handoff"),
        ("reviewer", "user", "result"),
    ]


def test_every_status_change_of_the_chain_has_exactly_one_event(room: Room, alice: User) -> None:
    send_message(room.pk, text="Fix it", author=alice)
    handoff(room.pk, take(room, alice, "builder"), next_role="reviewer", text="fixed", principal=principal_of(alice))
    for kind, rows in (("task", Task.objects.all()), ("agent", Agent.objects.all())):
        for row in rows:
            moves = Event.objects.filter(subject=kind, subject_id=row.pk).exclude(to_state="")
            states = list(moves.values_list("from_state", "to_state"))
            # Each begins where the one before ended, and the last one is what the row says.
            assert [before for before, _ in states[1:]] == [after for _, after in states[:-1]]
            assert not states or states[-1][1] == row.status


def test_the_next_role_reads_what_was_said_before(room: Room, alice: User) -> None:
    from tests.agents.playing import Program

    send_message(room.pk, text="Fix it", author=alice)
    handoff(room.pk, take(room, alice, "builder"), next_role="reviewer", text="fixed", principal=principal_of(alice))
    offer = Program(room, alice, "reviewer").connect().look()
    assert offer is not None
    assert (offer.text, offer.sender, offer.role, offer.attempt) == ("fixed", "builder", "reviewer", 1)
    assert [(said["from"], said["text"]) for said in offer.context] == [("alice", "Fix it")]
