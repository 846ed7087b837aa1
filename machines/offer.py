"""The demo room's first message, one click away until somebody has said something."""

from collections.abc import Iterable
from typing import Any

from chatroom.feed import Fragment, Look
from chatroom.markdown import render_markdown
from chatroom.models import Message, MessageKind, Room
from machines.demo.project import FIRST_MESSAGE
from machines.models import Placement

BUILDER, REVIEWER = "demo-builder", "demo-reviewer"


def describe_offer(room: Room) -> dict[str, Any]:
    """For `_demo_offer.html`: `offered` in a room whose builder is the demo's, and in which no person has sent anything."""
    if not is_demo(room) or has_begun(room):
        return {"room": room, "offered": False}
    return {"room": room, "offered": True, "text": FIRST_MESSAGE, "html": render_markdown(FIRST_MESSAGE)}


def is_demo(room: Room) -> bool:
    return Placement.objects.filter(agent__room=room, harness=BUILDER).exists()


def has_begun(room: Room) -> bool:
    return Message.objects.filter(room=room, kind=MessageKind.CHAT).exists()


class DemoOfferPart:
    """Takes the offer away on every open page with the first message, and shows it once the demo's builder has moved in."""

    def read(self, look: Look) -> Iterable[Fragment]:
        if look.everything or look.is_new or look.ids("message") or any(event.trigger == "configure" for event in look.events):
            yield Fragment("demo-offer", "machines/_demo_offer.html", describe_offer(look.room))

    def recheck(self, room: Room, memory: dict[str, Any]) -> Iterable[Fragment]:
        return ()
