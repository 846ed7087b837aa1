"""Real `wait_for_task` processes: how soon they wait, and how soon they print the line."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.fleet import ROLES
from bench.server import MANAGE, Server
from bench.wire import Api

SCRIPT = Path(sys.executable).with_name("chatroom")
CHATROOM = (
    [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-c", "import sys; from chatroom.client.main import main; sys.exit(main())"]
)
WAYS = {"manage.py wait_for_task": MANAGE, "chatroom wait_for_task": CHATROOM}
ROOMS, AT_ONCE, LIMIT = 10, 4, 30.0


class Waiting:
    """One process that waits, prints its task as one line, and ends."""

    def __init__(self, server: Server, *, room: str, role: str, way: Sequence[str] = CHATROOM) -> None:
        self.room, self.role = room, role
        self.command = [*way, "wait_for_task", room, "--role", role, "--json"]
        self.environment = {**server.environment, "CHATROOM_SERVER": server.url, "CHATROOM_TOKEN": server.token}

    async def start(self) -> float:
        """Returns after how many seconds it waits."""
        begun = time.monotonic()
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, env=self.environment, cwd=MANAGE_FOLDER, stdout=pipe, stderr=pipe
        )
        assert self.process.stdout
        assert self.process.stderr
        self.stdout = self.process.stdout
        said = await asyncio.wait_for(self.process.stderr.readline(), LIMIT)
        if b"waiting for work" not in said:
            raise RuntimeError(f"{' '.join(self.command)}: {said.decode()}{(await self.process.stderr.read()).decode()}")
        return time.monotonic() - begun

    async def line(self) -> tuple[float, str]:
        """When its line came, and the claim that stands in it."""
        line = await asyncio.wait_for(self.stdout.readline(), LIMIT)
        came = time.monotonic()
        await self.process.wait()
        return came, json.loads(line)["claim"]

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()


MANAGE_FOLDER = Path(MANAGE[1]).parent


async def measure_lines(server: Server, *, count: int, rate: float) -> list[float]:
    """Fifty processes wait in rooms of their own; each gets one message, then all are started anew."""
    api = Api(server.url, server.token)
    rooms = [(await api.call("POST", "rooms", {"name": f"Lines {number}", "team": ROLES}))["slug"] for number in range(ROOMS)]
    places = [(room, role) for role in ROLES for room in rooms]
    latencies: list[float] = []
    while len(latencies) < count:
        waiting = [Waiting(server, room=room, role=role) for room, role in places[: count - len(latencies)]]
        await start_all(waiting)
        latencies += await send_to_all(api, waiting, rate=rate)
    api.close()
    return latencies


async def start_all(waiting: list[Waiting]) -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def start(one: Waiting) -> None:
        async with turn:
            await one.start()

    await asyncio.gather(*(start(one) for one in waiting))


async def send_to_all(api: Api, waiting: list[Waiting], *, rate: float) -> list[float]:
    begun = time.monotonic()

    async def exchange(number: int, one: Waiting) -> float:
        await asyncio.sleep(max(0.0, begun + number / rate - time.monotonic()))
        sent = time.monotonic()
        posting = asyncio.create_task(api.call("POST", f"rooms/{one.room}/messages", {"text": "a line", "to": one.role}))
        came, claim = await one.line()
        await posting
        await api.call("POST", f"rooms/{one.room}/claims/{claim}/complete", {"text": "done"})
        return came - sent

    return await asyncio.gather(*(exchange(number, one) for number, one in enumerate(waiting)))


async def measure_starts(server: Server, *, way: str, count: int) -> list[float]:
    """One after the other, as a terminal starts them."""
    api = Api(server.url, server.token)
    room = (await api.call("POST", "rooms", {"name": "Starts", "team": "solo"}))["slug"]
    api.close()
    latencies = []
    for _ in range(count):
        waiting = Waiting(server, room=room, role="builder", way=WAYS[way])
        latencies.append(await waiting.start())
        await waiting.stop()
    return latencies
