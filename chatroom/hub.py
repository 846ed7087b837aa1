"""What wakes this process when a room changed: its own commits at once, other processes' by a hint through the channel layer.

A hint may be lost: whoever subscribes also re-checks by itself from time to time.
"""

import asyncio
import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from channels.layers import get_channel_layer

log = logging.getLogger(__name__)
# The first hint after a quiet moment goes at once; while there are many, those of a room travel together.
HINT_DELAY, HINT_PAUSE = 0.002, 0.02
PROCESS = uuid.uuid4().hex
Callback = Callable[[], None]
# A room by its id, or anything else by a name such as machine.3.
Topic = int | str


def group_of(room_id: Topic) -> str:
    return f"room.{room_id}" if isinstance(room_id, int) else room_id


making_layer = threading.Lock()


def channel_layer() -> Any:
    """Channels makes it at its first use. Two threads at once would make two, and one of them would not know what the other has joined."""
    with making_layer:
        return get_channel_layer()


def is_cancelled() -> bool:
    """The Redis client may swallow a cancellation that comes while it connects; the end of this task must come all the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Hub:
    """The rooms this process watches. Everything but `wake_from_anywhere` is called on the event loop."""

    def __init__(self) -> None:
        self.callbacks: dict[Topic, set[Callback]] = defaultdict(set)
        self.foreign_only: set[Callback] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.reader: asyncio.Task[None] | None = None
        self.channel: str | None = None
        self.changed: set[Topic] = set()
        self.publisher: asyncio.Task[None] | None = None

    def subscribe(self, room_id: Topic, callback: Callback, *, own: bool = True) -> None:
        """`own`: also after what this process itself committed."""
        self.adopt_loop()
        if not own:
            self.foreign_only.add(callback)
        is_new = not self.callbacks[room_id]
        self.callbacks[room_id].add(callback)
        if is_new:
            self.spawn(self.listen_to(room_id))

    def unsubscribe(self, room_id: Topic, callback: Callback) -> None:
        self.callbacks[room_id].discard(callback)
        self.foreign_only.discard(callback)
        if not self.callbacks[room_id]:
            del self.callbacks[room_id]
            self.spawn(self.stop_listening_to(room_id))

    def adopt_loop(self) -> None:
        """A process has one loop; tests bring a new one each."""
        loop = asyncio.get_running_loop()
        if self.loop is not loop:
            self.loop, self.reader, self.channel, self.publisher = loop, None, None, None
            self.callbacks.clear()
            self.foreign_only.clear()
            self.changed.clear()

    def spawn(self, coroutine: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        RUNNING.add(task)
        task.add_done_callback(RUNNING.discard)
        return task

    async def listen_to(self, room_id: Topic) -> None:
        if self.reader is None:
            self.reader = self.spawn(self.read())
        if self.channel is not None:
            with suppress(Exception):  # the reader finds the same fault, says it, and joins every group again
                await channel_layer().group_add(group_of(room_id), self.channel)
                self.wake(room_id)  # what changed until now came without a hint

    async def stop_listening_to(self, room_id: Topic) -> None:
        if self.channel is not None and room_id not in self.callbacks:
            with suppress(Exception):
                await channel_layer().group_discard(group_of(room_id), self.channel)

    async def read(self) -> None:
        """For ever: the hints of other processes. While the channel layer is away, the re-checks carry on."""
        is_lost = False
        while True:
            try:
                layer = channel_layer()
                self.channel = await layer.new_channel()
                for room_id in list(self.callbacks):
                    await layer.group_add(group_of(room_id), self.channel)
                    self.wake(room_id)
                if is_lost:
                    log.warning("hints are back")
                is_lost = False
                while not is_cancelled():
                    self.take(await layer.receive(self.channel))
                return
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not is_lost:
                    log.warning("hints are lost (%s): changes made by other processes show with a delay of some seconds", error)
                is_lost, self.channel = True, None
                if is_cancelled():
                    return
                await asyncio.sleep(1)

    def take(self, hint: dict[str, Any]) -> None:
        if hint.get("process") != PROCESS:
            self.wake(hint["room"])

    def wake(self, room_id: Topic, *, by_us: bool = False) -> None:
        for callback in list(self.callbacks.get(room_id, ())):
            if not (by_us and callback in self.foreign_only):
                callback()

    def wake_from_anywhere(self, room_id: Topic) -> bool:
        """From the thread that committed. False if this process runs no event loop of ours."""
        if self.loop is None or self.loop.is_closed() or not self.loop.is_running():
            return False
        self.loop.call_soon_threadsafe(self.wake_and_publish, room_id)
        return True

    def wake_and_publish(self, room_id: Topic) -> None:
        self.wake(room_id, by_us=True)
        self.changed.add(room_id)
        if self.publisher is None or self.publisher.done():
            self.publisher = self.spawn(self.publish())

    async def publish(self) -> None:
        """Several commits that came meanwhile travel as one hint; first, this process tells its own."""
        await asyncio.sleep(HINT_DELAY)
        while self.changed:
            changed, self.changed = self.changed, set()
            for room_id in changed:
                await send_hint(room_id)
            await asyncio.sleep(HINT_PAUSE)


RUNNING: set["asyncio.Task[None]"] = set()
hub = Hub()


async def send_hint(room_id: Topic) -> None:
    try:
        async with asyncio.timeout(3):
            await channel_layer().group_send(group_of(room_id), {"type": "hint", "room": room_id, "process": PROCESS})
    except Exception as error:
        log.debug("hint for room %s lost: %s", room_id, error)
