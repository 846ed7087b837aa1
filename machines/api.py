"""`/api/v1/machines/…`, and what people do with remote agents. docs/protocol.md is the contract."""

from collections.abc import Callable
from typing import Any, Literal

from django.db import transaction
from django.http import HttpRequest, HttpResponse
from ninja import Router, Schema

from agents.models import AgentKind
from chatroom.api_tools import Id, Line, perform, reply, show
from chatroom.db import in_db
from chatroom.errors import NotFound
from chatroom.models import Room
from chatroom.principals import Principal, resolve_token
from machines.models import Act, Command, Machine, Run
from machines.models.run import UNFINISHED
from machines.services.configuration import configure_agent
from machines.services.desire import abort_run, find_command, restart_agent, start_agent, stop_agent
from machines.services.pings import ask_machine
from machines.services.registration import issue_enrolment, redeem_enrolment, register_machine
from machines.services.revocation import revoke_machine
from machines.status import describe_agent, describe_command, describe_machine

router = Router()
ENROLMENT_PREFIX = "chatroom_enrolment_"


class NewMachine(Schema):
    name: Line
    platform: Line = ""
    registration: Line = ""


class Revocation(Schema):
    force: bool = False


class Configuration(Schema):
    kind: Literal["custom", "remote"] | None = None
    machine: Line | None = None
    harness: Line | None = None
    model: Line | None = None
    directory: Line | None = None
    mode: Literal["loop", "task"] | None = None
    force: bool = False


@router.get("machines")
async def machines(request: HttpRequest) -> HttpResponse:
    def work(principal: Principal) -> Any:
        reader = principal.require_person()
        found = Machine.objects.visible_to(reader).select_related("owner")
        return {"machines": [describe_machine(machine, reader=reader) for machine in found]}

    return await show(request, work)


@router.post("machines")
async def new_machine(request: Any, body: NewMachine) -> HttpResponse:
    """With a person's token, or the single-use secret of Add a machine. Repeatable by `registration`, not by key: no token is stored."""

    def work() -> dict[str, Any]:
        with transaction.atomic():
            if request.auth.startswith(ENROLMENT_PREFIX):
                machine, secret = redeem_enrolment(request.auth, **body.dict())
            else:
                owner = resolve_token(request.auth).require_person()
                machine, secret = register_machine(owner=owner, **body.dict())
            return {"id": machine.pk, "name": machine.name, "token": secret}

    return reply(201, await in_db(work))


@router.post("machines/enrolments")
async def new_enrolment(request: Any) -> HttpResponse:
    secret = await in_db(lambda: issue_enrolment(resolve_token(request.auth).require_person()))
    return reply(201, {"token": secret})


@router.get("machines/{name}")
async def show_machine(request: HttpRequest, name: str) -> HttpResponse:
    def work(principal: Principal) -> Any:
        return describe_machine(find_machine(principal, name), reader=principal.require_person())

    return await show(request, work)


@router.post("machines/{name}/revoke")
async def revoke(request: HttpRequest, name: str, body: Revocation | None = None) -> HttpResponse:
    given = body or Revocation()

    def work(principal: Principal) -> Any:
        machine = revoke_machine(find_machine(principal, name, own=True), actor=principal.name, force=given.force)
        return {"name": machine.name, "revoked": True}

    return await perform(request, f"revoke_machine:{name}", work, body=given.dict())


@router.post("machines/{name}/ping")
async def ping(request: HttpRequest, name: str) -> HttpResponse:
    return await ask(request, name, Act.PING)


@router.post("machines/{name}/status")
async def status(request: HttpRequest, name: str) -> HttpResponse:
    return await ask(request, name, Act.STATUS)


async def ask(request: HttpRequest, name: str, act: Act) -> HttpResponse:
    def work(principal: Principal) -> Any:
        return describe_command(ask_machine(find_machine(principal, name, own=True), act, actor=principal.name))

    return await perform(request, f"{act}_machine:{name}", work)


def find_machine(principal: Principal, name: str, *, own: bool = False) -> Machine:
    user = principal.require_person()
    machines = Machine.objects.owned_by(user) if own and not user.is_superuser else Machine.objects.visible_to(user)
    machine = machines.filter(name=name[:60].replace("\0", "")).select_related("owner").first()
    if machine is None:
        raise NotFound(f"there is no machine {name[:60]!r} of yours", code="not_found")
    return machine


@router.post("commands/abort_runs")
async def abort_runs(request: HttpRequest) -> HttpResponse:
    """Every run of every room this person owns; of every room, for the administrator."""

    def work(principal: Principal) -> Any:
        user = principal.require_person()
        rooms = Room.objects.all() if user.is_superuser else Room.objects.filter(membership__user=user, membership__role="owner")
        runs = Run.objects.filter(state__in=UNFINISHED, agent__room__in=rooms, agent__kind=AgentKind.REMOTE).select_related("agent")
        commands = [abort_run(run.agent.room_id, role=run.agent.role, actor=user.get_username()) for run in runs]
        return {"commands": [describe_command(command) for command in commands]}

    return await perform(request, "abort_runs", work)


@router.get("commands/{command_id}")
async def show_command(request: HttpRequest, command_id: Id) -> HttpResponse:
    def work(principal: Principal) -> Any:
        return describe_command(find_command(principal.require_person(), command_id))

    return await show(request, work)


@router.put("rooms/{room}/agents/{role}")
async def configure(request: HttpRequest, room: str, role: str, body: Configuration) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.find_room(room)
        agent = configure_agent(found.pk, role=role, user=principal.require_member(found, owner=True), **body.dict())
        return describe_agent(agent)

    return await perform(request, f"configure_agent:{room}:{role}", work, body=body.dict())


@router.post("rooms/{room}/agents/{role}/start")
async def start(request: HttpRequest, room: str, role: str) -> HttpResponse:
    return await command_agent(request, room, role, start_agent)


@router.post("rooms/{room}/agents/{role}/stop")
async def stop(request: HttpRequest, room: str, role: str) -> HttpResponse:
    return await command_agent(request, room, role, stop_agent)


@router.post("rooms/{room}/agents/{role}/restart")
async def restart(request: HttpRequest, room: str, role: str) -> HttpResponse:
    return await command_agent(request, room, role, restart_agent)


@router.post("rooms/{room}/agents/{role}/abort")
async def abort(request: HttpRequest, room: str, role: str) -> HttpResponse:
    return await command_agent(request, room, role, abort_run)


async def command_agent(request: HttpRequest, room: str, role: str, service: Callable[..., Command]) -> HttpResponse:
    def work(principal: Principal) -> Any:
        found = principal.find_room(room)
        return describe_command(service(found.pk, role=role, actor=principal.require_member(found).get_username()))

    return await perform(request, f"{service.__name__}:{room}:{role}", work, status=202)
