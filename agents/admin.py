"""Agents, their starts and claims, to look at; people's acts go through the services."""

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from agents.models import Agent, Claim, Incarnation
from agents.services import dismiss_agent, leave_agent
from chatroom.admin import ActingAdmin, ReadOnlyAdmin, run_each


@admin.register(Agent)
class AgentAdmin(ActingAdmin):
    list_display = ("role", "room", "kind", "status", "status_since", "lease_expires_at", "last_seen_at", "error_message")
    list_filter = ("status", "kind", "room")
    list_select_related = ("room",)
    search_fields = ("=id", "role", "room__slug", "error_message")
    exclude = ("incarnation", "connection")
    actions = ("leave", "dismiss")

    @admin.action(description="Stop (custom agents)", permissions=["act"])
    def leave(self, request: HttpRequest, agents: QuerySet[Agent]) -> None:
        actor = request.user.get_username()
        run_each(request, agents, lambda agent: leave_agent(agent.room_id, role=agent.role, actor=actor), done="stopped")

    @admin.action(description="Dismiss (dead agents)", permissions=["act"])
    def dismiss(self, request: HttpRequest, agents: QuerySet[Agent]) -> None:
        actor = request.user.get_username()
        run_each(request, agents, lambda agent: dismiss_agent(agent.room_id, role=agent.role, actor=actor), done="dismissed")


@admin.register(Incarnation)
class IncarnationAdmin(ReadOnlyAdmin):
    list_display = ("agent", "joined_at", "ended_at", "ended_by")
    list_filter = ("joined_at", "ended_at")
    list_select_related = ("agent__room",)
    search_fields = ("agent__role", "agent__room__slug", "ended_by")
    exclude = ("key",)


@admin.register(Claim)
class ClaimAdmin(ReadOnlyAdmin):
    list_display = ("id", "task", "agent", "attempt", "offered_at", "delivered_at", "started_at", "ended_at", "outcome", "ended_by")
    list_filter = ("outcome", "agent__role")
    list_select_related = ("task", "agent__room")
    search_fields = ("=id", "=task__id", "agent__role", "agent__room__slug")
    exclude = ("key", "incarnation")
