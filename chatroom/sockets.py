"""What Chatroom's sockets have in common."""

from typing import Any

from autobahn.exception import Disconnected
from channels.consumer import get_handler_name
from channels.generic.websocket import AsyncWebsocketConsumer


class QuickConsumer(AsyncWebsocketConsumer):
    """Channels' consumer without its channel (the hub listens, once per process) and its thread hop per message."""

    channel_layer_alias = "none"

    async def dispatch(self, message: dict[str, Any]) -> None:
        await getattr(self, get_handler_name(message))(message)

    async def send(self, text_data: str | None = None, bytes_data: bytes | None = None, close: bool = False) -> None:
        try:
            await super().send(text_data=text_data, bytes_data=bytes_data, close=close)
        except Disconnected:
            pass  # it has ended this moment: the message that says so is on its way to us
