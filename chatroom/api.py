"""`/api/v1/`: rooms, messages, tasks, sign-in of terminals. docs/protocol.md is the contract."""

import asyncio
from contextlib import suppress
from typing import Any, Literal

from django.conf import settings
from django.contrib.auth.models import User
from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from ninja import Query, Router, Schema
from pydantic import Field

from .api_tools import Id, Line, perform, reply, show
from .db import in_db, in_read
from .errors import Invalid, NotFound, TooMany
from .hub import hub
from .models import Event, Message, Task
from .principals import Principal, resolve_token
from .services.messages import add_backlog_item, send_message
from .services.rooms import add_member, create_room
from .services.tasks import TASK_ACTS
from .services.tokens import DEVICE_GRANT_LIFETIME, redeem_device_code, revoke_tokens, start_device_grant, waiting_grants
from .status import describe_chain, describe_event, describe_message, describe_task, list_tasks, name_room, newest_after, room_status
from .views.access import server_url

router = Router()
LONGEST_WAIT = 25
OPEN_GRANTS = 100


class NewRoom(Schema):
    name: Line
    team: list[Line] | Line = "pair"
    fail_fast: bool = False


class NewMessage(Schema):
    text: str
    to: Line | None = None


class NewBacklogItem(NewMessage):
    priority: int = 0


class Reason(Schema):
    reason: Line = ""


class NewMember(Schema):
    username: Line
    role: Literal["owner", "member", "viewer"] = "member"


class Device(Schema):
    client: Line = "a terminal"


class DeviceCode(Schema):
    device_code: Line


class Page(Schema):
    after: int | None = Field(None, ge=0, le=2**63 - 1)
    limit: int = Field(200, ge=1, le=500)


class EventPage(Page):
    wait: float = Field(0, ge=0)


@router.get("whoami")
async def whoami(request: HttpRequest) -> HttpResponse:
    def work(principal: Principal) -> Any:
        room = principal.rooms().first() if principal.room_id else None
        return {"kind": principal.kind, "name": principal.name, "room": room and room.slug, "role": principal.role or None}

    return await show(request, work)


@router.post("device", auth=None)
async def start_sign_in(request: HttpRequest, body: Device) -> HttpResponse:
    if await in_read(waiting_grants().count) >= OPEN_GRANTS:
        raise TooMany("too many terminals are waiting for a sign-in: try again in some minutes")
    device_code, grant = await in_db(start_device_grant, body.client)
    url = server_url(request) + reverse("device")
    return reply(
        200,
        {
            "device_code": device_code,
            "user_code": grant.user_code,
            "verification_url": url,
            "verification_url_complete": f"{url}?code={grant.user_code}",
            "expires_in": int(DEVICE_GRANT_LIFETIME.total_seconds()),
            "interval": 2,
        },
    )


@router.post("device/token", auth=None)
async def finish_sign_in(request: HttpRequest, body: DeviceCode) -> HttpResponse:
    token, secret = await in_db(redeem_device_code, body.device_code)
    name = await in_read(User.objects.values_list("username", flat=True).get, pk=token.user_id)
    return reply(200, {"token": secret, "name": name})


@router.post("logout")
async def logout(request: HttpRequest) -> HttpResponse:

    return await perform(request, "logout", lambda principal: revoke_tokens(Q(pk=principal.token_id)) and None, status=204)


@router.get("rooms")
async def rooms(request: HttpRequest) -> HttpResponse:
    def work(principal: Principal) -> Any:
        return {"rooms": [name_room(room) for room in principal.rooms()]}

    return await show(request, work)


@router.post("rooms")
async def new_room(request: HttpRequest, body: NewRoom) -> HttpResponse:
    def work(principal: Principal) -> Any:
        room = create_room(body.name, team=body.team, fail_fast=body.fail_fast, owner=principal.require_person())
        return {"id": room.pk, "slug": room.slug, "url": server_url(request) + reverse("room", args=[room.slug])}

    return await perform(request, "create_room", work, body=body.dict(), status=201)


@router.get("rooms/{room}")
async def show_room(request: HttpRequest, room: str) -> HttpResponse:
    return await show(request, lambda principal: room_status(principal.find_room(room)))


@router.get("rooms/{room}/events")
async def events(request: Any, room: str, page: Query[EventPage]) -> HttpResponse:
    """Long poll: held until there is an event after the given one, woken by the hub, with a re-check in case a hint was lost."""

    def find() -> int:
        return resolve_token(request.auth).find_room(room).pk

    room_id = await in_read(find)
    woken = asyncio.Event()
    hub.subscribe(room_id, woken.set)
    try:
        found = await read_events(room_id, page)
        ends_at = asyncio.get_running_loop().time() + min(page.wait, LONGEST_WAIT)
        while not found and (left := ends_at - asyncio.get_running_loop().time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, settings.FEED_RECHECK_INTERVAL)):
                    await woken.wait()
            woken.clear()
            found = await read_events(room_id, page)
    finally:
        hub.unsubscribe(room_id, woken.set)
    return reply(200, {"events": found, "last": found[-1]["id"] if found else page.after or 0})


async def read_events(room_id: int, page: EventPage) -> list[dict[str, Any]]:
    def work() -> list[dict[str, Any]]:
        return [describe_event(event) for event in newest_after(Event.objects.filter(room_id=room_id), after=page.after, limit=page.limit)]

    return await in_read(work)


@router.get("rooms/{room}/messages")
async def messages(request: HttpRequest, room: str, page: Query[Page]) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = newest_after(Message.objects.filter(room=principal.find_room(room)), after=page.after, limit=page.limit)
        return {"messages": [describe_message(message) for message in found], "last": found[-1].pk if found else page.after or 0}

    return await show(request, work)


@router.post("rooms/{room}/messages")
async def new_message(request: HttpRequest, room: str, body: NewMessage) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.lock_room(room)
        sent = send_message(found.pk, text=body.text, to=body.to or "", author=principal.require_member(found))
        return {"message": sent.message.pk, "task": sent.task.pk, "status": sent.task.status}

    return await perform(request, f"send_message:{room}", work, body=body.dict(), status=201)


@router.get("rooms/{room}/tasks")
async def tasks(request: HttpRequest, room: str, status: Line = "") -> HttpResponse:
    return await show(request, lambda principal: {"tasks": list_tasks(principal.find_room(room), status=status)})


@router.get("rooms/{room}/tasks/{task_id}")
async def show_task(request: HttpRequest, room: str, task_id: Id) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = Task.objects.filter(room=principal.find_room(room), pk=task_id).select_related("room").first()
        if found is None:
            raise NotFound(f"there is no task {task_id} in {room}", code="no_such_task")
        return describe_chain(found)

    return await show(request, work)


@router.post("rooms/{room}/tasks/{task_id}/{act}")
async def act_on_task(request: HttpRequest, room: str, task_id: Id, act: str, body: Reason) -> HttpResponse:
    service = TASK_ACTS.get(act)
    if service is None:
        raise Invalid(f"act {act[:40]!r}: expected one of {', '.join(TASK_ACTS)}", allowed=TASK_ACTS)

    def work(principal: Principal) -> Any:
        found = principal.lock_room(room)
        user = principal.require_member(found)
        return {"task": describe_task(service(found.pk, task_id=task_id, actor=user.get_username(), reason=body.reason))}

    return await perform(request, f"{act}:{room}:{task_id}", work, body=body.dict())


@router.post("rooms/{room}/backlog")
async def new_backlog_item(request: HttpRequest, room: str, body: NewBacklogItem) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.lock_room(room)
        author = principal.require_member(found)
        return {"task": describe_task(add_backlog_item(found.pk, text=body.text, to=body.to or "", author=author, priority=body.priority))}

    return await perform(request, f"add_backlog_item:{room}", work, body=body.dict(), status=201)


@router.post("rooms/{room}/members")
async def new_member(request: HttpRequest, room: str, body: NewMember) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.find_room(room)
        actor = principal.require_member(found, owner=True)
        user = User.objects.filter(username=body.username, is_active=True).first()
        if user is None:
            raise NotFound(f"there is no person {body.username[:60]!r}: an administrator makes the account first")
        membership = add_member(found, user=user, role=body.role, actor=actor.get_username())
        return {"username": user.get_username(), "role": membership.role}

    return await perform(request, f"add_member:{room}", work, body=body.dict(), status=201)
