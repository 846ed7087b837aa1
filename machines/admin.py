"""Machines, commands and runs, to look at; people's acts go through the services."""

from collections.abc import Callable

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from chatroom.admin import ActingAdmin, ReadOnlyAdmin, run_each
from machines.models import Command, Machine, Placement, Run, RunLog
from machines.services.desire import abort_run, restart_agent, start_agent, stop_agent
from machines.services.revocation import revoke_machine


@admin.register(Machine)
class MachineAdmin(ActingAdmin):
    list_display = ("name", "owner", "status", "status_since", "last_seen_at", "platform", "version", "slots", "revoked_at")
    list_filter = ("status", "revoked_at", "owner")
    list_select_related = ("owner",)
    search_fields = ("=id", "name", "owner__username", "platform")
    exclude = ("registration", "instance", "connection")
    actions = ("revoke", "revoke_with_agents")

    @admin.action(description="Revoke (machines without agents)", permissions=["act"])
    def revoke(self, request: HttpRequest, machines: QuerySet[Machine]) -> None:
        actor = request.user.get_username()
        run_each(request, machines, lambda machine: revoke_machine(machine, actor=actor), done="revoked")

    @admin.action(description="Revoke at once, and give up the processes of the agents there", permissions=["act"])
    def revoke_with_agents(self, request: HttpRequest, machines: QuerySet[Machine]) -> None:
        actor = request.user.get_username()
        run_each(request, machines, lambda machine: revoke_machine(machine, actor=actor, force=True), done="revoked")


def agent_action(
    service: Callable[..., Command], label: str, *, done: str
) -> Callable[[admin.ModelAdmin, HttpRequest, QuerySet[Placement]], None]:
    @admin.action(description=label, permissions=["act"])
    def action(model_admin: admin.ModelAdmin, request: HttpRequest, placements: QuerySet[Placement]) -> None:
        actor = request.user.get_username()
        run_each(request, placements, lambda found: service(found.agent.room_id, role=found.agent.role, actor=actor), done=done)

    action.__name__ = service.__name__
    return action


@admin.register(Placement)
class PlacementAdmin(ActingAdmin):
    list_display = ("agent", "machine", "harness", "model", "mode", "desired_state", "desired_by", "generation", "exhausted_generation")
    list_filter = ("desired_state", "mode", "machine", "harness")
    list_select_related = ("agent__room", "machine")
    search_fields = ("=id", "agent__role", "agent__room__slug", "machine__name", "harness", "directory")
    actions = (
        agent_action(start_agent, "Start", done="asked to start"),
        agent_action(stop_agent, "Stop", done="asked to stop"),
        agent_action(restart_agent, "Restart", done="asked to restart"),
        agent_action(abort_run, "Abort the run", done="asked to abort"),
    )


@admin.register(Command)
class CommandAdmin(ReadOnlyAdmin):
    list_display = ("id", "act", "agent", "machine", "state", "actor", "generation", "outcome", "created_at", "ended_at")
    list_filter = ("state", "act", "machine")
    list_select_related = ("agent__room", "machine")
    search_fields = ("=id", "agent__role", "agent__room__slug", "machine__name", "actor", "outcome")
    date_hierarchy = "created_at"


@admin.register(Run)
class RunAdmin(ReadOnlyAdmin):
    list_display = ("id", "agent", "machine", "state", "generation", "attempt", "pid", "exit_code", "signal", "verdict", "error_message")
    list_filter = ("state", "verdict", "failure", "machine")
    list_select_related = ("agent__room", "machine")
    search_fields = ("=id", "=pid", "agent__role", "agent__room__slug", "machine__name", "error_message")
    date_hierarchy = "created_at"


@admin.register(RunLog)
class RunLogAdmin(ReadOnlyAdmin):
    list_display = ("run", "end")
    list_filter = ("run__state", "run__machine")
    list_select_related = ("run__agent__room",)
    search_fields = ("=run__id", "run__agent__role", "run__agent__room__slug")
