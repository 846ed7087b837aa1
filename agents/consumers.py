"""`/ws/agent/`: one program waits for work. The protocol is docs/protocol.md; the rules are in agents/services."""

import asyncio
import json
import logging
import random
from dataclasses import replace
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from agents import waiters
from agents.models import run_incarnation
from agents.services import abandon_offer, confirm_delivery, disconnect_agent, join_agent, leave_agent, offer_next, renew_leases, show_life
from agents.services.claims import Offer
from agents.services.presence import Hello, Joined, connection_name
from chatroom import ending
from chatroom.db import in_db, in_read
from chatroom.errors import ChatroomError, Invalid, NotSignedIn, Superseded
from chatroom.gathering import Gathered
from chatroom.models import TokenKind
from chatroom.principals import bearer_of, resolve_token
from chatroom.sockets import QuickConsumer

log = logging.getLogger(__name__)
PROTOCOL = 1
OFFER_TIMEOUT = 20
renew_together = Gathered(renew_leases)
BAD_REQUEST, REFUSED, SUPERSEDED, TRY_AGAIN, ABNORMAL = 4400, 4403, 4409, 1013, 1006


def join(secret: str, *, room: str, hello: Hello) -> tuple[Joined, str]:
    """One trip to the database for the whole hello. Returns the incarnation too: a run's programs all speak for their run."""
    principal = resolve_token(secret)
    if principal.kind == TokenKind.AGENT:
        hello = replace(hello, incarnation=run_incarnation(principal.subject_id))
    return join_agent(principal.find_room(room), hello=hello, principal=principal), hello.incarnation


class AgentConsumer(QuickConsumer):
    waiter: waiters.Waiter | None = None
    joined: Joined | None = None
    incarnation = ""
    is_planned_end = False
    is_looking = must_look_again = False
    open_offer: Offer | None = None
    offer_timer: asyncio.TimerHandle | None = None

    async def __call__(self, *application: Any) -> None:
        try:
            await super().__call__(*application)
        finally:
            # The server may end this socket's task without a last message: nobody must be left who looks as if it waited.
            if self.waiter is not None:
                self.waiter.run(self.disconnect(ABNORMAL))

    async def connect(self) -> None:
        self.secret = bearer_of(self.scope["headers"])
        try:
            await in_read(resolve_token, self.secret)  # not behind the acts: when everybody comes back at once, these take long
        except NotSignedIn:
            await self.close()
        except (DatabaseError, InterfaceError) as error:
            await self.accept()
            await self.ask_to_retry(error)
        else:
            await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            message = json.loads(text_data or "")
            handler = self.HANDLERS[message["type"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            await self.refuse(
                Invalid(f"message {str(text_data)[:80]!r}: expected JSON with a type of {', '.join(self.HANDLERS)}"), BAD_REQUEST
            )
            return
        try:
            await handler(self, message)
        except Superseded as error:
            await self.supersede(error.message)
        except ChatroomError as error:
            await self.refuse(error, BAD_REQUEST if isinstance(error, Invalid) else REFUSED)
        except (DatabaseError, InterfaceError) as error:
            await self.ask_to_retry(error)

    async def hello(self, message: dict[str, Any]) -> None:
        if message.get("protocol") != PROTOCOL:
            raise Invalid(f"protocol {message.get('protocol')!r}: this server speaks {PROTOCOL}")
        if self.joined is not None:
            raise Invalid("hello came twice: expected it once, first")
        if ending.ending:
            await self.ask_to_retry("the server is ending")
            return
        incarnation = read_text(message, "incarnation")
        self.connection = connection_name(incarnation, message.get("connection"))
        hello = Hello(
            role=read_text(message, "role"),
            incarnation=incarnation,
            connection=self.connection,
            joined=bool(message.get("joined")),
        )
        joined, self.incarnation = await in_db(join, self.secret, room=read_text(message, "room"), hello=hello)
        self.joined = joined
        await self.say("welcome", **self.describe(joined))
        # Registered before the first look: work that arrives in between is found by one or the other.
        self.waiter = waiters.Waiter(joined.agent_id, joined.room.pk, self.incarnation, self.connection, self)
        waiters.add(self.waiter)
        # Beside the socket's own messages: a renewal that follows must not wait behind it.
        self.waiter.run(self.look_for_work())

    def describe(self, joined: Joined) -> dict[str, Any]:
        return {
            "protocol": PROTOCOL,
            "room": {"id": joined.room.pk, "slug": joined.room.slug, "name": joined.room.name},
            "role": joined.role,
            "status": joined.status,
            "lease_seconds": settings.HEARTBEAT_TTL,
            "renew_seconds": settings.HEARTBEAT_INTERVAL,
            "resumed": joined.resumed,
        }

    async def look_for_work(self) -> None:
        if self.joined is None or self.waiter is None or self.open_offer is not None:
            return
        if self.is_looking:
            self.must_look_again = True  # what is new may be newer than what that look sees
            return
        self.is_looking, self.must_look_again = True, False
        try:
            found = await in_db(
                offer_next, self.joined.agent_id, room_id=self.joined.room.pk, incarnation=self.incarnation, connection=self.connection
            )
        except Superseded:
            return  # the check that follows says by whom
        except (DatabaseError, InterfaceError) as error:
            log.warning("no look for work for %s now: %s", self.joined.role, error)
            return
        finally:
            self.is_looking = False
        if found is None and self.must_look_again:
            await self.look_for_work()
        elif found is not None and self.open_offer is None:
            await self.offer(found)

    async def offer(self, offer: Offer) -> None:
        if self.is_planned_end or self.waiter is None:
            await self.give_back(offer, "its socket had ended")
            return
        self.open_offer = offer
        self.offer_timer = asyncio.get_running_loop().call_later(OFFER_TIMEOUT, self.give_up_offer)
        await self.say(**offer.as_json())

    def give_up_offer(self) -> None:
        """The socket lives, but its program does not answer."""
        if self.waiter is not None:
            self.waiter.run(self.close(TRY_AGAIN))

    async def received(self, message: dict[str, Any]) -> None:
        joined, claim = self.require_joined(), read_text(message, "claim")
        is_confirmed = await in_db(confirm_delivery, claim, room_id=joined.room.pk, incarnation=self.incarnation)
        # An offer taken back may have been followed by another one already.
        if self.open_offer is not None and self.open_offer.claim == claim:
            self.forget_offer()
        await self.say("confirmed" if is_confirmed else "withdrawn", claim=claim)
        if not is_confirmed and self.waiter is not None:
            self.waiter.run(self.look_for_work())

    def forget_offer(self) -> None:
        self.open_offer = None
        if self.offer_timer is not None:
            self.offer_timer.cancel()

    async def renew(self, message: dict[str, Any]) -> None:
        joined, answer = self.require_joined(), "ok"
        if not await renew_together((joined.agent_id, self.incarnation)):
            answer = await in_db(show_life, joined.agent_id, room_id=joined.room.pk, incarnation=self.incarnation)
        await self.say("renewed", answer=answer, lease_seconds=settings.HEARTBEAT_TTL)
        if answer == "resume" and self.waiter is not None:
            self.waiter.run(self.look_for_work())

    async def bye(self, message: dict[str, Any]) -> None:
        self.stop_waiting()
        await self.close(1000)

    async def leave(self, message: dict[str, Any]) -> None:
        joined = self.require_joined()
        self.stop_waiting()
        await in_db(leave_agent, joined.room.pk, role=joined.role, actor=joined.role, incarnation=self.incarnation)
        await self.say("left")
        await self.close(1000)

    async def disconnect(self, code: int) -> None:
        offer, is_planned = self.open_offer, self.is_planned_end or ending.ending
        self.stop_waiting()
        self.forget_offer()
        if self.joined is None:
            return
        try:
            if offer is not None:
                await self.give_back(offer, "its socket ended before it was received")
            await in_db(
                disconnect_agent,
                self.joined.agent_id,
                incarnation=self.incarnation,
                connection=self.connection,
                is_planned=is_planned,
            )
        except (DatabaseError, InterfaceError) as error:
            log.warning("%s: its socket ended while the database was away (%s); its lease decides", self.joined.role, error)

    def stop_waiting(self) -> None:
        """From here on nothing is offered to this socket, and its end is one that was announced."""
        self.is_planned_end = True
        if self.waiter is not None:
            waiters.discard(self.waiter)
            self.waiter = None

    async def give_back(self, offer: Offer, reason: str) -> None:
        joined = self.require_joined()
        await in_db(abandon_offer, offer.claim, room_id=joined.room.pk, reason=f"not delivered: {reason}")

    async def supersede(self, message: str) -> None:
        self.stop_waiting()
        await self.say("superseded", message=message)
        await self.close(SUPERSEDED)

    async def refuse(self, error: ChatroomError, close_code: int) -> None:
        self.is_planned_end = self.is_planned_end or self.joined is None
        await self.say("error" if close_code == BAD_REQUEST else "refused", error=error.as_json())
        await self.close(close_code)

    async def ask_to_retry(self, why: object) -> None:
        log.warning("an agent's socket can't be served now, it is asked to come back: %s", why)
        self.stop_waiting()
        await self.say("retry", message="the server can't serve this now", after=round(random.uniform(1, 5), 1))
        await self.close(TRY_AGAIN)

    def require_joined(self) -> Joined:
        if self.joined is None:
            raise Invalid("expected hello first")
        return self.joined

    async def say(self, type: str, **fields: Any) -> None:  # noqa: A002  (the word of the protocol)
        await self.send(text_data=json.dumps({"type": type, **fields}))

    HANDLERS = {"hello": hello, "renew": renew, "received": received, "bye": bye, "leave": leave}


def read_text(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 120 or not value.isprintable():
        raise Invalid(f"{name} {str(value)[:60]!r}: expected 1 to 120 printable characters")
    return value
