"""One effect per key: a repeat gets the first answer; only effects are remembered, never refusals."""

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.serializers.json import DjangoJSONEncoder

from agents.services import complete_task
from chatroom.errors import Invalid, KeyReused, OutdatedClaim
from chatroom.idempotency import Once
from chatroom.models import IdempotencyRecord, Message, Room, Task
from chatroom.services.messages import send_message
from chatroom.services.tasks import TASK_ACTS
from chatroom.status import describe_task
from tests.agents.playing import everything, take
from tests.factories import make_task, principal_of

pytestmark = pytest.mark.django_db


def once(key: str = "k", *, principal: str = "user:1", act: str = "send_message:demo", body: Any = None) -> Once:
    return Once(principal, act, key, body or {"text": "do it"})


def sending(room: Room, author: User) -> Any:
    return lambda: (201, {"task": send_message(room.pk, text="do it", author=author).task.pk})


@pytest.mark.scenario(29)
def test_the_same_key_and_body_have_one_effect_and_the_same_answer(room: Room, alice: User) -> None:
    first = once().run(sending(room, alice))
    before = everything()
    assert [once().run(sending(room, alice)) for _ in range(3)] == [first] * 3
    assert first == (201, {"task": Task.objects.get().pk})
    assert everything() == before


def test_without_a_key_every_request_is_new(room: Room, alice: User) -> None:
    for _ in range(2):
        once("").run(sending(room, alice))
    assert (Task.objects.count(), IdempotencyRecord.objects.count()) == (2, 0)


@pytest.mark.parametrize("other", [{"principal": "user:2"}, {"act": "send_message:other"}, {"key": "k2"}])
def test_another_person_act_or_key_is_another_request(room: Room, alice: User, other: dict[str, str]) -> None:
    once().run(sending(room, alice))
    once(**other).run(sending(room, alice))
    assert Task.objects.count() == 2


def test_the_same_key_with_another_body_is_refused(room: Room, alice: User) -> None:
    once().run(sending(room, alice))
    before = everything()
    with pytest.raises(KeyReused, match="was used for another body") as refusal:
        once(body={"text": "do something else"}).run(sending(room, alice))
    assert (refusal.value.status, refusal.value.code) == (422, "key_reused")
    assert everything() == before


def test_a_refusal_is_not_remembered(room: Room, alice: User) -> None:
    def refused() -> tuple[int, Any]:
        send_message(room.pk, text="half of it", author=alice)
        raise Invalid("no")

    before = everything()
    with pytest.raises(Invalid, match="no"):
        once().run(refused)
    assert everything() == before
    assert not IdempotencyRecord.objects.exists()
    assert once().run(sending(room, alice))[0] == 201


def test_the_answer_is_stored_in_the_transaction_of_its_effect(room: Room, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is full")

    before = everything()
    with monkeypatch.context() as patch:
        patch.setattr(Once, "remember", broken)
        with pytest.raises(RuntimeError):
            once().run(sending(room, alice))
    assert everything() == before


def test_two_equal_requests_at_once_leave_one_effect(room: Room, alice: User) -> None:
    """The second one wrote its effect too before it came to the key, which lets one through: its effect goes."""

    def overtaken() -> tuple[int, Any]:
        fields = {"principal": "user:1", "act": "send_message:demo", "key": "k", "body_hash": once().body_hash}
        IdempotencyRecord.objects.create(**fields, status_code=201, answer={"task": 77})
        return sending(room, alice)()

    # Here both are one connection, so the other one's record goes as well; with two, its answer is the answer (see the races of the API).
    with pytest.raises(Invalid, match="contradicts"):
        once().run(overtaken)
    assert not Message.objects.exists()


def test_a_refusal_because_the_repeat_was_first_is_answered_like_it(room: Room, alice: User) -> None:
    send_message(room.pk, text="do it", author=alice)
    claim = take(room, alice)
    mine = once(f"complete:{claim}", act=f"complete_task:{claim}", body={"text": "done"})

    def complete() -> tuple[int, Any]:
        done = complete_task(room.pk, claim, text="done", principal=principal_of(alice))
        return 200, {"task": done.task.pk}

    def refused() -> tuple[int, Any]:
        mine.run(complete)  # the other one came through meanwhile, and committed
        raise OutdatedClaim("completed")

    late = Once(mine.principal, mine.act, mine.key, mine.body)
    answer = mine.run(complete)
    assert late.run(refused) == answer


@pytest.mark.parametrize("act", TASK_ACTS)
def test_the_answer_of_every_act_can_be_stored_and_comes_back_as_it_was(room: Room, alice: User, act: str) -> None:
    """Times too: JSON has no type for them."""
    status = {"move_to_queue": "backlog", "reset": "in_progress", "retry": "failed", "approve": "pending_user_review"}
    status |= {"send_back": "pending_user_review", "reopen": "closed"}
    task = make_task(room, status=status.get(act, "pending"), origin="backlog")

    def work() -> tuple[int, Any]:
        return 200, {"task": describe_task(TASK_ACTS[act](room.pk, task_id=task.pk, actor="alice", reason="because"))}

    mine = once(act=f"{act}:{'r' * 80}:{2**63 - 1}")
    first, again = (json.loads(json.dumps(mine.run(work), cls=DjangoJSONEncoder)) for _ in range(2))
    assert first == again


def test_a_key_has_its_limit(room: Room, alice: User) -> None:
    with pytest.raises(Invalid, match="expected at most 200"):
        once("k" * 201).run(sending(room, alice))
    assert once("k" * 200).run(sending(room, alice))[0] == 201
