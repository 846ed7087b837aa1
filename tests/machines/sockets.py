"""A daemon's end of `/ws/machine/`."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from machines.models import Machine, Run
from tests.api.conftest import PATIENCE, Socket, knock

HELLO = {"protocol": 1, "instance": "instance-1", "machine": "laptop-9", "version": "0.2.0", "platform": "Linux x86_64", "slots": 5}
OFFER = {"allow_dirs": ["/home/alice/src"], "harnesses": [{"name": "demo", "version": "1.0", "models": [], "ok": True, "error": ""}]}


class DaemonSocket(Socket):
    async def introduce(self, **fields: Any) -> dict[str, Any]:
        await self.say("hello", **{**HELLO, **OFFER, "runs": [], **fields})
        return await self.hear("welcome")

    async def come_up(self, **fields: Any) -> list[dict[str, Any]]:
        """Through the replay of nothing, to the snapshot."""
        await self.introduce(**fields)
        await self.say("replayed")
        agents: list[dict[str, Any]] = (await self.hear("snapshot"))["agents"]
        return agents

    async def report(self, run: Run, name: str, **fields: Any) -> dict[str, Any]:
        key = fields.pop("key", f"run:{run.pk}:{name}")
        await self.say("report", key=key, report=name, age=0.0, run=run.pk, agent=run.agent_id, generation=run.generation, **fields)
        return await self.hear("ack")

    async def hear_in_time(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of this kind with these fields; hints before it are passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message: dict[str, Any] = await self.communicator.receive_json_from(timeout=PATIENCE)
                if message["type"] == kind and all(message.get(name) == value for name, value in fields.items()):
                    return message


@asynccontextmanager
async def daemon_socket(token: str, **headers: str) -> AsyncIterator[DaemonSocket]:
    communicator = knock(token, "/ws/machine/", **headers)
    is_open, _ = await communicator.connect(timeout=PATIENCE)
    assert is_open, "the handshake was refused"
    try:
        yield DaemonSocket(communicator)
    finally:
        if not communicator.future.done():
            await communicator.disconnect(timeout=PATIENCE)


def machine_of() -> Machine:
    return Machine.objects.get(name="laptop-9")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)
