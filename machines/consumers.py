"""`/ws/machine/`: a daemon's socket. The protocol is docs/protocol-machine.md; the rules are in machines/services."""

import asyncio
import json
import logging
import random
import secrets
import time
from typing import Any

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from chatroom import ending
from chatroom.consumers import server_url
from chatroom.db import in_db, in_liveness, in_read
from chatroom.errors import ChatroomError, Invalid, NotAllowed, NotSignedIn, Superseded
from chatroom.gathering import Gathered
from chatroom.hub import hub
from chatroom.models import TokenKind
from chatroom.prepared import Prepared
from chatroom.principals import bearer_of, resolve_token
from chatroom.sockets import QuickConsumer
from machines.hints import topic_of
from machines.models import Machine
from machines.services import connection as service
from machines.services.connection import Introduction, Revoked, SecondInstance
from machines.services.opening import look_at_join, open_run
from machines.services.pings import keep_answer
from machines.services.reports import receive_report
from machines.services.telling import dispatch_commands, glance, keep_log, snapshot
from machines.untrusted import clean_line, read_id

log = logging.getLogger(__name__)
PROTOCOL = 1
BAD_REQUEST, REFUSED, SECOND, TRY_AGAIN = 4400, 4403, 4409, 1013
AWAY = (DatabaseError, InterfaceError)
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
LOOK_INTERVAL = 0.5
note_together = Gathered(service.note_lives)


def resolve_machine(secret: str) -> Machine:
    principal = resolve_token(secret)
    machine = MACHINE.first(machine=principal.subject_id or 0) if principal.kind == TokenKind.MACHINE else None
    if machine is None:
        raise NotSignedIn("this is not the token of a machine")
    return machine


MACHINE = Prepared[Machine](lambda machine: Machine.objects.filter(pk=machine, revoked_at=None))


def is_known(secret: str) -> bool:
    try:
        return bool(resolve_machine(secret))
    except NotSignedIn:
        return False


class MachineConsumer(QuickConsumer):
    machine: Machine | None = None
    watch: "asyncio.Task[None] | None" = None
    sender: "asyncio.Task[None] | None" = None
    said_goodbye = is_closed = is_replaced = is_busy = has_replayed = False

    async def connect(self) -> None:
        self.secret, self.connection = bearer_of(self.scope["headers"]), secrets.token_hex(8)
        self.heard_at = time.monotonic()
        self.living: list[int] = []
        self.wake = asyncio.Event()
        self.sent: dict[int, str] = {}
        try:
            self.known = await in_read(resolve_machine, self.secret)
            await self.accept()
        except NotSignedIn:
            await self.close()
        except AWAY as error:
            await self.accept()
            await self.ask_to_retry(error)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        try:
            message = json.loads(text_data or "")
            handler = self.HANDLERS[message["type"]]
            if (self.machine is None) != (message["type"] == "hello"):
                raise Invalid("expected hello first, and once")
        except (ValueError, KeyError, TypeError, RecursionError):
            await self.refuse(
                Invalid(f"message {str(text_data)[:80]!r}: expected JSON with a type of {', '.join(self.HANDLERS)}"), BAD_REQUEST
            )
            return
        except Invalid as error:
            await self.refuse(error, BAD_REQUEST)
            return
        self.is_busy = True
        await self.handle(handler, message)
        self.is_busy, self.heard_at = False, time.monotonic()

    async def handle(self, handler: Any, message: dict[str, Any]) -> None:
        try:
            await self.note_life()
            await handler(self, message)
        except SecondInstance as error:
            await self.refuse(error, SECOND)
        except Superseded:
            self.is_replaced = True
            await self.close(SECOND)
        except ChatroomError as error:
            await self.refuse(error, REFUSED if isinstance(error, NotAllowed) else BAD_REQUEST)
        except AWAY as error:
            await self.ask_to_retry(error)
        except MALFORMED as error:
            log.warning("a daemon's %s can't be understood: %r", message["type"], error)
            await self.refuse(Invalid(f"{message['type']}: {error!r}"), BAD_REQUEST)

    async def note_life(self) -> None:
        """Any message is a sign of life; it goes its own cheap way."""
        self.heard_at = time.monotonic()
        if self.machine is not None and not await note_together((self.machine.pk, self.connection)):
            await in_db(service.revive_machine, self.machine.pk, connection=self.connection)

    async def hello(self, message: dict[str, Any]) -> None:
        if message.get("protocol") != PROTOCOL:
            raise Invalid(f"protocol {message.get('protocol')!r}: this server speaks {PROTOCOL}")
        if ending.ending:
            await self.ask_to_retry("the server is ending")
            return
        introduction = Introduction.read(message, connection=self.connection)
        self.living = introduction.living
        self.machine = await in_db(service.connect_machine, self.known.pk, introduction)
        hub.subscribe(topic_of(self.machine.pk), self.wake.set)
        self.watch = asyncio.create_task(self.keep_watch(self.machine))
        await self.say("welcome", protocol=PROTOCOL, machine={"id": self.machine.pk, "name": self.machine.name}, settings=told_settings())

    async def replayed(self, message: dict[str, Any]) -> None:
        if self.has_replayed:
            raise Invalid("replayed came twice: expected it once, after the reports")
        machine, self.has_replayed = self.require_machine(), True
        await in_db(service.finish_replay, machine.pk, living=self.living)
        agents = await in_db(snapshot, machine.pk)
        self.remember(agents)
        await self.say("snapshot", agents=agents)
        self.wake.set()
        self.sender = asyncio.create_task(self.keep_sending(machine))

    async def keep_sending(self, machine: Machine) -> None:
        """Commands, and agents whose configuration changed: on every hint, and now and then, for a hint may be lost."""
        seen: tuple[Any, ...] | None = None
        while True:
            is_hinted = await self.wait_for_hint()
            try:
                if is_hinted and await in_read(service.is_revoked, machine.pk):
                    await self.refuse(Revoked(f"{machine} was revoked"), REFUSED)
                    return
                # Before the look itself: what changes meanwhile is found by the next one.
                found = await in_read(glance, machine.pk)
                if is_hinted or found != seen:
                    seen = None
                    await self.send_news(machine)
                seen = found
            except AWAY as error:
                log.warning("nothing can be sent to %s now: %s", machine.name, error)
                await asyncio.sleep(1)
            except Exception:
                log.exception("what %s is to be told could not be read; the next look is in a second", machine.name)
                await asyncio.sleep(1)

    async def wait_for_hint(self) -> bool:
        """False when it is time to look without one."""
        try:
            async with asyncio.timeout(settings.FEED_RECHECK_INTERVAL):
                await self.wake.wait()
        except TimeoutError:
            return False
        self.wake.clear()
        return True

    async def send_news(self, machine: Machine) -> None:
        for message in await in_db(dispatch_commands, machine.pk):
            await self.send(text_data=json.dumps(message))
            if agent := message.get("agent"):
                self.remember([agent])
        agents = await in_read(snapshot, machine.pk)
        present = {agent["agent"] for agent in agents}
        for agent in agents:
            if self.sent.get(agent["agent"]) != fingerprint(agent):
                await self.say("agent", agent=agent)
        for gone in set(self.sent) - present:
            del self.sent[gone]
            await self.say("agent_removed", agent=gone)
        self.remember(agents)

    def remember(self, agents: list[dict[str, Any]]) -> None:
        self.sent.update({agent["agent"]: fingerprint(agent) for agent in agents})

    async def report(self, message: dict[str, Any]) -> None:
        machine, key = self.require_machine(), str(message.get("key"))[:200]
        rejected = await in_db(receive_report, machine, message)
        if rejected is None:
            await self.say("ack", key=key, answer="ok")
        else:
            log.info("%s: report %s rejected: %s", machine.name, key, rejected)
            await self.say("ack", key=key, answer="rejected", reason=rejected)

    async def heartbeat(self, message: dict[str, Any]) -> None:
        machine, runs = self.require_machine(), message.get("runs")
        vouched = await in_liveness(service.vouch, machine.pk, runs=runs if isinstance(runs, list) else [])
        if not await in_read(is_known, self.secret):
            await self.refuse(Revoked(f"the token of {machine} was revoked"), REFUSED)
            return
        await self.say("heartbeat", superseded=vouched.superseded)
        if vouched.dead:
            await in_db(service.resume_dead, machine, vouched.dead)

    async def alive(self, message: dict[str, Any]) -> None:
        """Noted already, as every message is."""

    async def ask(self, message: dict[str, Any]) -> None:
        answers = {"open_run": self.answer_open_run, "joined": self.answer_joined}
        if message.get("ask") not in answers or not self.has_replayed:
            raise Invalid(f"ask {message.get('ask')!r}: expected open_run or joined, after the snapshot")
        await self.say("answer", id=message.get("id"), **await answers[message["ask"]](message))

    async def answer_open_run(self, message: dict[str, Any]) -> dict[str, Any]:
        machine, agent_id = self.require_machine(), read_id(message.get("agent"))
        try:
            grant = await in_db(
                open_run,
                machine,
                agent_id=agent_id,
                generation=int(message.get("generation") or 0),
                attempt=int(message.get("attempt") or 1),
                request=clean_line(message.get("request"), 64),
                server_url=server_url(self.scope),
            )
        except ChatroomError as error:
            agents = await in_db(snapshot, machine.pk, agent_id=agent_id)
            return {"error": error.as_json(), "agent": agents[0] if agents else None}
        return {"run": grant}

    async def answer_joined(self, message: dict[str, Any]) -> dict[str, Any]:
        return await in_db(look_at_join, self.require_machine(), read_id(message.get("run")))

    async def log(self, message: dict[str, Any]) -> None:
        chunks = [chunk for chunk in message.get("chunks", []) if isinstance(chunk, dict)]
        await in_db(keep_log, self.require_machine().pk, chunks)

    async def result(self, message: dict[str, Any]) -> None:
        data = message.get("data")
        await in_db(keep_answer, self.require_machine().pk, read_id(message.get("command")), data if isinstance(data, dict) else {})

    async def harnesses(self, message: dict[str, Any]) -> None:
        await in_db(service.change_offer, self.require_machine().pk, message)

    async def goodbye(self, message: dict[str, Any]) -> None:
        machine, self.said_goodbye = self.require_machine(), True
        left = "its agents live on" if message.get("keep_agents") else "its agents were stopped"
        reason = f"the daemon said goodbye: {left}"
        await in_db(service.note_absence, machine.pk, connection=self.connection, trigger="disconnect", reason=reason)
        await self.close(1000)

    async def disconnect(self, code: int) -> None:
        self.is_closed = True
        if self.sender is not None:
            self.sender.cancel()
        if self.machine is not None:
            hub.unsubscribe(topic_of(self.machine.pk), self.wake.set)

    async def keep_watch(self, machine: Machine) -> None:
        """Silence is noticed here, also after the socket has ended: until a newer socket speaks, or the machine counts as away."""
        noted = ""
        while not (self.said_goodbye or self.is_replaced or ending.ending):
            before = time.monotonic()
            await asyncio.sleep(LOOK_INTERVAL)
            # What this process slept through says nothing about the daemon, nor does what it is busy with.
            self.heard_at += max(0.0, time.monotonic() - before - 2 * LOOK_INTERVAL)
            silent = 0.0 if self.is_busy else time.monotonic() - self.heard_at
            trigger = "disconnect" if silent >= settings.DISCONNECTED_AFTER else "miss" if silent >= settings.UNRESPONSIVE_AFTER else ""
            if trigger != noted and (not trigger or await self.note_silence(machine, trigger, silent)):
                noted = trigger
            if noted == "disconnect" and (self.is_closed or silent >= settings.KEEPALIVE_TIMEOUT):
                await self.close_silent()
                return

    async def note_silence(self, machine: Machine, trigger: str, silent: float) -> bool:
        """True once it is noted: said once per episode."""
        reason = f"no sign of life for {silent:.0f} s"
        try:
            is_noted = await in_db(service.note_silence, machine.pk, connection=self.connection, trigger=trigger, reason=reason)
        except Superseded:
            self.is_replaced = True
            return True
        except AWAY as error:
            log.warning("%s is silent, which can't be noted now: %s", machine.name, error)
            return False
        if is_noted:
            log.warning("%s: %s: %s", machine.name, reason, {"miss": "unresponsive", "disconnect": "disconnected"}[trigger])
        return is_noted

    async def close_silent(self) -> None:
        if not self.is_closed:
            await self.close(TRY_AGAIN)

    async def refuse(self, error: ChatroomError, close_code: int) -> None:
        await self.say("refused", error=error.as_json())
        await self.close(close_code)

    async def ask_to_retry(self, why: object) -> None:
        log.warning("a daemon can't be served now, it is asked to come back: %s", why)
        await self.say("retry", message="the server can't serve this now", after=round(random.uniform(1, 5), 1))
        await self.close(TRY_AGAIN)

    def require_machine(self) -> Machine:
        if self.machine is None:
            raise Invalid("expected hello first")
        return self.machine

    async def say(self, type: str, **fields: Any) -> None:  # noqa: A002  (the word of the protocol)
        await self.send(text_data=json.dumps({"type": type, **fields}))

    HANDLERS = {
        "hello": hello,
        "replayed": replayed,
        "report": report,
        "heartbeat": heartbeat,
        "alive": alive,
        "ask": ask,
        "log": log,
        "result": result,
        "harnesses": harnesses,
        "goodbye": goodbye,
    }


def told_settings() -> dict[str, float]:
    names = {
        "heartbeat_interval": "DAEMON_HEARTBEAT_INTERVAL",
        "restart_attempts": "RESTART_ATTEMPTS",
        "restart_delay": "RESTART_DELAY",
        "restart_deadline": "RESTART_DEADLINE",
        "stop_grace": "STOP_GRACE",
        "stop_hard": "STOP_LIMIT",
        "log_retention": "LOG_RETENTION",
    }
    return {ours: getattr(settings, theirs) for ours, theirs in names.items()}


def fingerprint(agent: dict[str, Any]) -> str:
    """What must change for the daemon to be told: not the ages of old exits."""
    return json.dumps(
        {name: value for name, value in agent.items() if name != "history"} | {"exits": len(agent["history"])}, sort_keys=True
    )
