"""The sockets of this process that wait for work.

Written on the event loop; read by database threads, which may find a waiter that has just gone: its offer is then released as undelivered.
"""

import asyncio
import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from django.conf import settings

from chatroom.db import in_read
from chatroom.errors import ChatroomError, NotSignedIn
from chatroom.hub import hub

if TYPE_CHECKING:
    from agents.services.claims import Offer
    from agents.services.presence import Joined

log = logging.getLogger(__name__)
TRUSTED_FOR = 5.0  # seconds until we look again whether who waits still may
REFUSED = 4403


class Socket(Protocol):
    joined: "Joined | None"

    async def offer(self, offer: "Offer") -> None: ...
    async def look_for_work(self) -> None: ...
    async def supersede(self, message: str) -> None: ...
    async def refuse(self, error: ChatroomError, close_code: int) -> None: ...


@dataclass(eq=False)
class Waiter:
    agent_id: int
    room_id: int
    incarnation: str
    connection: str
    socket: Socket
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    looked_at: float = 0.0

    def __post_init__(self) -> None:
        self.looked_at = self.loop.time()

    @property
    def token_id(self) -> int:
        return self.socket.joined.token_id if self.socket.joined else 0

    def deliver_from_thread(self, offer: "Offer") -> None:
        self.loop.call_soon_threadsafe(self.run, self.socket.offer(offer))

    def run(self, coroutine: Any) -> None:
        task = self.loop.create_task(coroutine)
        RUNNING.add(task)
        task.add_done_callback(RUNNING.discard)


RUNNING: set["asyncio.Task[Any]"] = set()
_by_agent: dict[int, dict[str, Waiter]] = {}
_by_room: dict[int, set[Waiter]] = defaultdict(set)
_rounds: dict[int, "asyncio.Task[None]"] = {}
_wakes: dict[int, Any] = {}


def are_here(agent_id: int) -> bool:
    return agent_id in _by_agent


def find(agent_id: int, connection: str) -> Waiter | None:
    return _by_agent.get(agent_id, {}).get(connection)


def are_in(room_id: int) -> bool:
    return room_id in _by_room


def wake_from_thread(room_id: int) -> None:
    """After a commit of this process that changed who speaks for an agent; other commits offer what they made to claim by themselves."""
    if (wake := _wakes.get(room_id)) and hub.loop is not None and not hub.loop.is_closed():
        hub.loop.call_soon_threadsafe(wake)


def displaced(room_id: int, current: dict[int, str]) -> list[str]:
    """The incarnations that wait here although another one speaks for their agent."""
    return [waiter.incarnation for waiter in list(_by_room.get(room_id, ())) if current.get(waiter.agent_id) != waiter.incarnation]


def add(waiter: Waiter) -> None:
    _by_agent.setdefault(waiter.agent_id, {})[waiter.connection] = waiter
    if not _by_room[waiter.room_id]:
        start_watching(waiter.room_id)
    _by_room[waiter.room_id].add(waiter)


def discard(waiter: Waiter) -> None:
    connections = _by_agent.get(waiter.agent_id, {})
    connections.pop(waiter.connection, None)
    if not connections:
        _by_agent.pop(waiter.agent_id, None)
    _by_room[waiter.room_id].discard(waiter)
    if not _by_room[waiter.room_id]:
        stop_watching(waiter.room_id)


def start_watching(room_id: int) -> None:
    wake = asyncio.Event()
    _wakes[room_id] = wake.set
    hub.subscribe(room_id, wake.set, own=False)
    _rounds[room_id] = asyncio.get_running_loop().create_task(keep_checking(room_id, wake))


def stop_watching(room_id: int) -> None:
    del _by_room[room_id]
    hub.unsubscribe(room_id, _wakes.pop(room_id))
    _rounds.pop(room_id).cancel()


async def keep_checking(room_id: int, wake: asyncio.Event) -> None:
    """On every change of the room, and every 2 s without one, for a hint may be lost."""
    while True:
        try:
            async with asyncio.timeout(settings.WAITER_RECHECK_INTERVAL):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()
        try:
            await check_room(room_id)
        except Exception:
            log.exception(
                "the waiting agents of room %s could not be checked; the next check is in %s s", room_id, settings.WAITER_RECHECK_INTERVAL
            )
            await asyncio.sleep(settings.WAITER_RECHECK_INTERVAL)


async def check_room(room_id: int) -> None:
    """One query for all waiters of the room, however many."""
    from agents.services.presence import look_after_waiters  # services use this module

    # Those of before the look: whoever comes while it runs must not be judged by what was true before it came.
    waiting = list(_by_room.get(room_id, ()))
    doubted = take_doubted(waiting)
    look = await in_read(look_after_waiters, room_id, tokens={waiter.token_id for waiter in doubted})
    for waiter in waiting:
        state = look.states.get(waiter.agent_id)
        if find(waiter.agent_id, waiter.connection) is not waiter:
            continue
        if state is None or state.incarnation != waiter.incarnation or state.connection not in ("", waiter.connection):
            message = state.ended_by.get(waiter.incarnation, "another socket of the same start took over") if state else "the agent is gone"
            waiter.run(waiter.socket.supersede(message))
        elif waiter in doubted and waiter.token_id not in look.valid_tokens:
            error = NotSignedIn("the sign-in it came with was revoked, or may not play a role in this room any more")
            waiter.run(waiter.socket.refuse(error, REFUSED))
        elif state.has_work:
            waiter.run(waiter.socket.look_for_work())


def take_doubted(waiting: list[Waiter]) -> set[Waiter]:
    """Whose right to wait was not looked at for a while; now it is."""
    time = asyncio.get_running_loop().time()
    doubted = {waiter for waiter in waiting if time - waiter.looked_at >= TRUSTED_FOR}
    for waiter in doubted:
        waiter.looked_at = time
    return doubted
