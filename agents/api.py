"""`/api/v1/rooms/ROOM/claims/…` and `…/agents/…`: what an agent does with its task, what a person does with an agent."""

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.timezone import now
from ninja import Router, Schema

from agents.models import Agent
from agents.services import (
    build_prompt,
    complete_task,
    dismiss_agent,
    fail_task,
    handoff,
    leave_agent,
    report_progress,
    start_command,
    start_task,
)
from agents.services.presence import find_agent
from agents.services.work import Done, keep_late_result
from chatroom.api_tools import Line, perform, show
from chatroom.db import in_db
from chatroom.errors import OutdatedClaim
from chatroom.models import Room
from chatroom.principals import Principal
from chatroom.status import STOPPERS, contribute
from chatroom.views.access import server_url

router = Router()


class Said(Schema):
    text: str


class Handoff(Said):
    next_role: Line


class Goodbye(Schema):
    incarnation: Line | None = None


@router.post("rooms/{room}/claims/{claim}/start")
async def start(request: HttpRequest, room: str, claim: str) -> HttpResponse:
    def work(principal: Principal) -> Any:
        task = start_task(principal.lock_room(room).pk, claim, principal=principal)
        return {"task": task.pk, "status": task.status}

    return await perform(request, f"start_task:{claim}", work, body={})


@router.post("rooms/{room}/claims/{claim}/progress")
async def progress(request: HttpRequest, room: str, claim: str, body: Said) -> HttpResponse:
    return await act_with_text(request, room, claim, "report_progress", report_progress, text=body.text)


@router.post("rooms/{room}/claims/{claim}/complete")
async def complete(request: HttpRequest, room: str, claim: str, body: Said) -> HttpResponse:
    return await act_with_text(request, room, claim, "complete_task", complete_task, text=body.text)


@router.post("rooms/{room}/claims/{claim}/handoff")
async def hand_off(request: HttpRequest, room: str, claim: str, body: Handoff) -> HttpResponse:
    return await act_with_text(request, room, claim, "handoff", handoff, text=body.text, next_role=body.next_role)


@router.post("rooms/{room}/claims/{claim}/fail")
async def fail(request: HttpRequest, room: str, claim: str, body: Said) -> HttpResponse:
    return await act_with_text(request, room, claim, "fail_task", fail_task, text=body.text)


async def act_with_text(request: HttpRequest, room: str, claim: str, act: str, service: Callable[..., Done], **fields: str) -> HttpResponse:
    """An act that brings a text: if its claim is outdated the act is refused, but the text is kept."""
    found: list[int] = []

    def work(principal: Principal) -> Any:
        found.append(principal.lock_room(room).pk)
        done = service(found[0], claim, principal=principal, **fields)
        return describe_done(act, done)

    try:
        return await perform(request, f"{act}:{claim}", work, body=fields)
    except OutdatedClaim:
        await in_db(keep_late_result, found[0], claim, text=fields["text"])
        raise


def describe_done(act: str, done: Done) -> dict[str, Any]:
    answer: dict[str, Any] = {"message": done.message and done.message.pk, "task": done.task.pk}
    if act != "report_progress":
        answer["status"] = done.task.status
    if act == "handoff":
        following = done.next_task
        answer["next"] = following and {"task": following.pk, "role": following.assigned_role, "status": following.status}
    return answer


@router.post("rooms/{room}/agents/{role}/leave")
async def leave(request: HttpRequest, room: str, role: str, body: Goodbye) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.find_room(room)
        principal.require_speaker(found, role)
        return brief(leave_agent(found.pk, role=role, actor=principal.name, incarnation=body.incarnation))

    return await perform(request, f"leave:{room}:{role}", work, body=body.dict())


@router.post("rooms/{room}/agents/{role}/dismiss")
async def dismiss(request: HttpRequest, room: str, role: str) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.find_room(room)
        return brief(dismiss_agent(found.pk, role=role, actor=principal.require_member(found).get_username()))

    return await perform(request, f"dismiss:{room}:{role}", work)


def brief(agent: Agent) -> dict[str, Any]:
    return {"role": agent.role, "status": agent.status}


@router.get("rooms/{room}/agents/{role}/prompt")
async def prompt(request: HttpRequest, room: str, role: str) -> HttpResponse:
    url = server_url(request)

    def work(principal: Principal) -> Any:
        agent = find_agent(principal.find_room(room), role)
        return {"role": role, "prompt": build_prompt(agent, server_url=url), "command": start_command(agent, server_url=url)}

    return await show(request, work)


@contribute
def add_agents(room: Room, status: dict[str, Any]) -> None:
    holds = {task["assigned_role"]: task["id"] for task in status["tasks"] if task["holder"]}
    status["agents"] = [describe_agent(agent, holds.get(agent.role)) for agent in Agent.objects.filter(room=room)]


def describe_agent(agent: Agent, task_id: int | None) -> dict[str, Any]:
    is_overdue = agent.is_live and agent.lease_expires_at is not None and agent.lease_expires_at < now()
    return {
        "role": agent.role,
        "kind": agent.kind,
        "status": agent.status,
        "desired_state": None,
        "error_message": agent.error_message,
        "lease_expires_at": agent.lease_expires_at,
        "last_seen_at": agent.last_seen_at,
        "waiting": agent.waiting_since is not None,
        "unconfirmed_since": agent.lease_expires_at if is_overdue else None,
        "unconfirmed_why": "nobody has heard from it" if is_overdue else None,
        "machine": None,
        "run": None,
        "task": task_id,
    }


@STOPPERS.append
def name_unrecoverable(room: Room, roles: list[str]) -> str | None:
    agent = Agent.objects.filter(room=room, role__in=roles, status="dead_failed_revive").first()
    return f"{agent.role} is unrecoverable: {agent.error_message}" if agent else None
