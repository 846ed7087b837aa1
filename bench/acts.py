"""The acts of the main path, called as the API and the sockets call them."""

import secrets
from collections.abc import Callable
from typing import Any

from django.contrib.auth.models import User

from agents import waiters
from agents.services import complete_task, confirm_delivery
from agents.services.claims import Offer
from agents.services.presence import Hello, join_agent
from chatroom.idempotency import Once
from chatroom.models import Token, TokenKind
from chatroom.principals import Principal, resolve_token
from chatroom.services.messages import send_message
from chatroom.services.rooms import create_room


class FakeSocket:
    """Stands where a waiting socket stands, and keeps what it is offered."""

    def __init__(self) -> None:
        self.offers: list[Offer] = []

    def deliver_from_thread(self, offer: Offer) -> None:
        self.offers.append(offer)


class Acts:
    def __init__(self) -> None:
        user = User.objects.create_user("bench")
        self.room = create_room("Bench", team="pair", owner=user)
        self.secret = Token.objects.issue(kind=TokenKind.PERSON, name="bench", user=user)[1]
        self.socket = FakeSocket()
        self.hello = Hello(role="builder", incarnation=secrets.token_hex(8), connection=secrets.token_hex(8), joined=False)
        joined = join_agent(self.room, hello=self.hello, principal=resolve_token(self.secret))
        waiter: Any = self.socket
        waiters._by_room[self.room.pk].add(waiter)
        waiters._by_agent[joined.agent_id] = {self.hello.connection: waiter}

    def all(self) -> dict[str, Callable[[], Any]]:
        return {
            "POST message → offer (message, task, claim)": self.send,
            "received → confirmed": self.receive,
            "POST complete": self.complete,
        }

    def once(self, act: str, work: Callable[[Principal], Any]) -> None:
        principal = resolve_token(self.secret)
        Once(principal.key, act, secrets.token_hex(8), {}).run(lambda: (200, work(principal)))

    def send(self) -> None:
        def work(principal: Principal) -> Any:
            room = principal.lock_room(self.room.slug)
            sent = send_message(room.pk, text="work", to="builder", author=principal.require_member(room))
            return {"task": sent.task.pk}

        self.once("send", work)

    def receive(self) -> None:
        assert confirm_delivery(self.socket.offers[-1].claim, room_id=self.room.pk, incarnation=self.hello.incarnation)

    def complete(self) -> None:
        def work(principal: Principal) -> Any:
            room = principal.lock_room(self.room.slug)
            return {"task": complete_task(room.pk, self.socket.offers[-1].claim, text="done", principal=principal).task.pk}

        self.once("complete", work)
