"""Agents' programs: they wait, work, hand on, crash, hang and lose their way, as any program would."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed, InvalidStatus

from agents import api
from chatroom.errors import ChatroomError

from .network import ClientSocket, Dial, Host, Lost, Wire
from .processes import SimProcess
from .server import request

if TYPE_CHECKING:
    from .world import World

LEAVING = {"outdated_claim", "superseded", "wrong_state", "no_such_claim", "role_not_yours", "not_signed_in", "not_allowed"}


class Exit(Exception):
    """The program ends by itself."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


@dataclass(frozen=True)
class Habits:
    """Chances per task, but `never_joins` and `fails_early`, which are per start."""

    crash: float = 0.06
    give_up: float = 0.06
    drop_offer: float = 0.06
    silent: float = 0.03
    waits_for: float = 0.15
    never_joins: float = 0.02
    fails_early: float = 0.05
    transient: float = 0.3
    slowness: float = 6.0

    @classmethod
    def draw(cls, rng: Random) -> "Habits":
        """Some seeds have a fleet that is nothing but trouble."""
        bad = rng.choice([0.3, 1.0, 1.0, 1.0, 3.0, 6.0])
        return cls(crash=0.06 * bad, give_up=0.05 * bad, drop_offer=0.05 * bad, never_joins=0.02 * bad, fails_early=0.06 * bad)


class Program:
    def __init__(self, world: "World", *, name: str, room: str, role: str, secret: str, host: Host, run: int | None = None) -> None:
        self.world, self.name, self.room, self.role, self.secret, self.run = world, name, room, role, secret, run
        self.process = SimProcess(name, host=host)
        self.host, self.rng = host, world.rng(name)
        self.incarnation = ""
        self.heard_at = float("-inf")  # the server's last word to this incarnation
        self.is_waiting = self.is_leaving = False
        self.wire: Wire | None = None  # on which it waits
        self.exit_code: int | None = None

    # Its life

    def start(self) -> "asyncio.Task[None]":
        return self.process.spawn(self.live())

    async def live(self) -> None:
        try:
            await self.begin()
            while True:
                offer = await self.wait_for_task()
                await self.work(offer)
        except Exit as end:
            self.exit_code = end.code
            self.world.note("program ends", f"{self.name} with {end.code}")
            self.process.kill()

    @property
    def is_running(self) -> bool:
        return self.process.is_alive and self.exit_code is None

    @property
    def is_connected(self) -> bool:
        """It waits, and neither end has given the connection up."""
        return self.is_waiting and self.wire is not None and not (self.wire.is_over or self.wire.to_server.is_broken)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability and not self.world.is_calm

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.process.going.wait()

    async def begin(self) -> None:
        habits = self.world.habits
        await self.pause(0.1 + self.rng.random())
        if self.run is None:
            return
        if self.chance(habits.never_joins):
            await self.pause(10_000)
        if self.chance(habits.fails_early):
            raise Exit(self.bad_code())

    def bad_code(self) -> int:
        return 75 if self.chance(self.world.habits.transient) else self.rng.choice([0, 1, 3])

    # Waiting

    async def wait_for_task(self) -> dict[str, Any]:
        """One call of the command: one incarnation, as many connections as it takes."""
        self.incarnation, joined, tries, connections = f"{self.rng.getrandbits(64):016x}", False, 0, 0
        while True:
            connections += 1
            try:
                async with Dial(self.world, "/ws/agent/", self.secret) as socket:
                    hello = {"type": "hello", "protocol": 1, "room": self.room, "role": self.role, "incarnation": self.incarnation}
                    await socket.send(json.dumps({**hello, "connection": connections, "joined": joined}))
                    message = await self.hear(socket, within=20)
                    joined, tries = True, 0
                    if message["type"] == "welcome" and (offer := await self.converse(socket)):
                        return offer
            except (OSError, ConnectionClosed, TimeoutError):
                tries += 1
                await self.pause(self.rng.random() * min(30, 5 if tries == 1 else 2**tries))
            except InvalidStatus:
                raise Exit(3) from None
            finally:
                self.is_waiting = False
            if joined and tries == 0:  # its own --timeout passed
                self.incarnation, joined = f"{self.rng.getrandbits(64):016x}", False

    async def hear(self, socket: ClientSocket, *, within: float) -> dict[str, Any]:
        async with asyncio.timeout(within):
            message: dict[str, Any] = json.loads(await socket.recv())
        match message["type"]:
            case "superseded":
                self.world.checker.superseded(self)
                raise Exit(6)
            case "refused" | "error":
                self.world.checker.check_refusal(message["error"]["message"])
                raise Exit(5 if message["error"]["code"] != "not_signed_in" else 3)
            case "retry":
                raise OSError("the server asks to come back later")
        self.heard_at = self.world.loop.time()
        return message

    async def converse(self, socket: ClientSocket) -> dict[str, Any] | None:
        """Until a task is confirmed as ours; None when the time is over."""
        loop = self.world.loop
        patience = loop.time() + (5 + 60 * self.rng.random() if self.chance(self.world.habits.waits_for) else 1e9)
        self.is_waiting, self.wire, offer, unanswered = True, socket.wire, None, 0
        renew_at = loop.time() + 10
        while True:
            until = min(renew_at, patience)
            try:
                message = await self.hear(socket, within=max(0.0, until - loop.time()))
            except TimeoutError:
                if loop.time() >= patience and offer is None:
                    await self.say_bye(socket, "timeout")
                    return None
                if (unanswered := unanswered + 1) > 2:
                    raise
                await socket.send('{"type": "renew"}')
                renew_at = loop.time() + 10
                continue
            unanswered = 0
            offer = await self.take(socket, message, offer)
            if offer is not None and message["type"] == "confirmed":
                await self.say_bye(socket, "task")
                return offer

    async def say_bye(self, socket: ClientSocket, reason: str) -> None:
        try:
            await socket.send(json.dumps({"type": "bye", "reason": reason}))
        except ConnectionClosed:
            pass  # what had to be said was said before

    async def take(self, socket: ClientSocket, message: dict[str, Any], offer: dict[str, Any] | None) -> dict[str, Any] | None:
        match message["type"]:
            case "offer":
                if self.chance(self.world.habits.drop_offer):
                    await self.drop_offer(socket)
                await socket.send(json.dumps({"type": "received", "claim": message["claim"]}))
                return message
            case "withdrawn":
                return None
            case "confirmed":
                self.world.checker.confirmed(message["claim"])
        return offer

    async def drop_offer(self, socket: ClientSocket) -> None:
        if self.rng.random() < 0.5:
            await self.pause(25 * self.rng.random())  # it hangs; the server does not wait for ever
        socket.wire.drop()
        raise OSError("the connection broke before the offer was received")

    async def leave(self) -> None:
        """SIGINT to the waiting command. Its goodbye may be late: somebody else may speak for the role by then."""
        self.is_leaving = True
        goodbye = self.world.web.http(self.host, lambda: api.leave(request(self.secret), self.room, self.role, self.goodbye()))
        try:
            async with asyncio.timeout(2):
                await goodbye
        except (Lost, TimeoutError, ChatroomError):
            pass
        self.process.kill()

    def goodbye(self) -> api.Goodbye:
        return api.Goodbye(incarnation=self.incarnation)

    # Working

    async def work(self, offer: dict[str, Any]) -> None:
        claim, habits = str(offer["claim"]), self.world.habits
        if not await self.act("start", claim, lambda key: api.start(request(self.secret, key=key), self.room, claim)):
            return
        for _ in range(self.rng.randrange(3)):
            await self.take_time()
            if self.chance(habits.crash):
                raise Exit(self.bad_code())
            if not await self.say("progress", claim, "so far"):
                return
        await self.take_time()
        if self.chance(habits.silent):
            await self.pause(300)
        await self.conclude(claim, offer)
        await self.pause(self.rng.random() * 3)

    async def take_time(self) -> None:
        await self.pause(0.2 if self.world.is_calm else self.world.habits.slowness * self.rng.random() ** 3 * 3)

    async def conclude(self, claim: str, offer: dict[str, Any]) -> None:
        team = self.world.teams[self.room]
        following = team[team.index(self.role) + 1 :]
        if self.chance(self.world.habits.give_up):
            await self.say("fail", claim, "it cannot be done")
        elif self.chance(0.03):
            if await self.hand_on(claim, "nobody", offer):
                self.world.checker.violated("only roles of the team", "a handoff to nobody was accepted")
            await self.hand_on(claim, "user", offer)
        elif following and not self.world.is_calm:
            await self.hand_on(claim, following[0], offer)
        elif self.rng.random() < 0.5:
            await self.say("complete", claim, f"done: {offer['text']}")
        else:
            await self.hand_on(claim, "user", offer)

    async def hand_on(self, claim: str, role: str, offer: dict[str, Any]) -> bool:
        body = api.Handoff(text=f"{offer['text']}>{self.role}", next_role=role)
        return await self.act("handoff", claim, lambda key: api.hand_off(request(self.secret, key=key), self.room, claim, body))

    async def say(self, act: str, claim: str, text: str) -> bool:
        endpoint = {"progress": api.progress, "fail": api.fail, "complete": api.complete}[act]
        return await self.act(act, claim, lambda key: endpoint(request(self.secret, key=key), self.room, claim, api.Said(text=text)))

    async def act(self, act: str, claim: str, call: Callable[[str], Awaitable[Any]]) -> bool:
        """True when it was accepted; False when the task is not ours any more, or the act is not possible."""
        key = f"{act}:{claim}" + (f":{self.rng.getrandbits(64)}" if act == "progress" else "")
        try:
            answer = await self.request(call, key=key)
        except ChatroomError as error:
            self.world.checker.refused(act, claim, key, error)
            if error.code == "superseded":
                raise Exit(6) from None
            if error.code in {"role_not_yours", "not_signed_in"}:
                raise Exit(5) from None
            return False
        self.world.checker.accepted(act, claim, answer)
        return True

    async def request(self, call: Callable[[str], Awaitable[Any]], *, key: str) -> dict[str, Any]:
        """Again and again until there is an answer."""
        tries = 0
        while True:
            await self.process.going.wait()
            try:
                answer = await self.world.web.http(self.host, lambda: self.world.checker.remembering(key, call(key)))
                self.heard_at = self.world.loop.time()
                return answer
            except Lost:
                tries += 1
                await self.pause(self.rng.random() * min(20, 2**tries))
