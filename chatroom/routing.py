from channels.routing import URLRouter
from django.urls import path

from agents.consumers import AgentConsumer
from machines.consumers import MachineConsumer
from machines.tailing import LogConsumer

from .consumers import MeConsumer, RoomConsumer

# Browsers send an Origin, which their consumers check, and cookies with it; programs send neither, but a token.
websocket_application = URLRouter(
    [
        path("ws/agent/", AgentConsumer.as_asgi()),
        path("ws/machine/", MachineConsumer.as_asgi()),
        path("ws/me/", MeConsumer.as_asgi()),
        path("ws/rooms/<str:room>/", RoomConsumer.as_asgi()),
        path("ws/rooms/<str:room>/agents/<str:role>/log/", LogConsumer.as_asgi()),
    ]
)
