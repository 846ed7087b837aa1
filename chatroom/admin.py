"""The admin site: everything to look at, find and filter. What has rules is changed through the services only; the log not at all."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest

from .errors import ChatroomError
from .events import record_event
from .models import DeviceGrant, Event, IdempotencyRecord, Job, Membership, Message, Notice, Pulse, Room, Task, Token
from .services.rooms import room_locked
from .services.tasks import TASK_ACTS
from .services.tokens import revoke_tokens


class ReadOnlyAdmin(admin.ModelAdmin):
    """Rows that only the program writes."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


def may_act(admin_class: admin.ModelAdmin, request: HttpRequest) -> bool:
    """Who may change such rows at all may press the buttons of the services."""
    options = admin_class.opts
    return request.user.has_perm(f"{options.app_label}.change_{options.model_name}")


class ActingAdmin(ReadOnlyAdmin):
    """Read-only rows, with the services' acts in the list of actions."""

    def has_act_permission(self, request: HttpRequest) -> bool:
        return may_act(self, request)


def run_each(request: HttpRequest, rows: QuerySet[Any], act: Callable[[Any], object], *, done: str) -> None:
    """One service call, and so one event, for each; what is refused says why, and stops nothing else."""
    count = 0
    for row in rows:
        try:
            act(row)
        except ChatroomError as error:
            messages.error(request, error.message)
        else:
            count += 1
    if count:
        messages.success(request, f"{count} {done}")


def task_action(name: str, label: str, *, done: str) -> Callable[[admin.ModelAdmin, HttpRequest, QuerySet[Task]], None]:
    @admin.action(description=label, permissions=["act"])
    def action(model_admin: admin.ModelAdmin, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        actor = request.user.get_username()
        reason = f"{label.lower()} by {actor} in the admin site"
        run_each(request, tasks, lambda task: TASK_ACTS[name](task.room_id, task_id=task.pk, actor=actor, reason=reason), done=done)

    action.__name__ = f"{name}_tasks"
    return action


@admin.register(Task)
class TaskAdmin(ActingAdmin):
    list_display = ("id", "title", "room", "assigned_role", "status", "status_since", "attempt", "crashes", "origin")
    list_filter = ("status", "origin", "assigned_role", "room")
    list_select_related = ("room",)
    search_fields = ("=id", "title", "failure_reason", "room__slug")
    date_hierarchy = "created_at"
    actions = (
        task_action("move_to_queue", "Move to queue", done="moved to the queue"),
        task_action("cancel", "Cancel", done="closed"),
        task_action("reset", "Reset", done="reset"),
        task_action("retry", "Retry", done="tried again"),
        task_action("force_complete", "Complete", done="completed"),
        task_action("approve", "Approve", done="approved"),
        task_action("send_back", "Send back", done="sent back"),
        task_action("reopen", "Reopen", done="opened again"),
    )


class MembershipInline(admin.TabularInline):
    model = Membership
    extra = 0
    autocomplete_fields = ("user",)


@admin.register(Room)
class RoomAdmin(admin.ModelAdmin):
    """Rooms are made by the service, with their agents; a name and who may see it can be changed here."""

    list_display = ("slug", "name", "team", "fail_fast", "created_at")
    list_filter = ("fail_fast", "created_at")
    search_fields = ("slug", "name")
    readonly_fields = ("slug", "team", "created_at")
    inlines = (MembershipInline,)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False  # what was said and done there is protected, one by one

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Open pages show its people, and learn of a change by its event."""
        super().save_related(request, form, formsets, change)
        with room_locked(form.instance.pk) as room:
            record_event(room, "change", actor=request.user.get_username(), room_id=room.pk)


@admin.register(Membership)
class MembershipAdmin(ReadOnlyAdmin):
    """To look at; changed with their room."""

    list_display = ("room", "user", "role", "created_at")
    list_filter = ("role", "room")
    list_select_related = ("room", "user")
    search_fields = ("room__slug", "room__name", "user__username")


@admin.register(Message)
class MessageAdmin(ReadOnlyAdmin):
    list_display = ("id", "room", "kind", "sender", "to", "beginning", "created_at")
    list_filter = ("kind", "room")
    list_select_related = ("room",)
    search_fields = ("=id", "text", "sender", "room__slug")
    date_hierarchy = "created_at"

    @admin.display(description="text")
    def beginning(self, message: Message) -> str:
        return message.text[:80]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """The log. Nobody changes it."""

    list_display = ("id", "created_at", "room", "subject", "subject_id", "role", "trigger", "from_state", "to_state", "actor", "reason")
    list_filter = ("subject", "trigger", "to_state", "room")
    list_select_related = ("room",)
    search_fields = ("=id", "=subject_id", "role", "actor", "reason", "room__slug")
    date_hierarchy = "created_at"


@admin.register(Notice)
class NoticeAdmin(ReadOnlyAdmin):
    list_display = ("id", "room", "task", "text", "created_at", "told_at")
    list_filter = ("room", "created_at")
    list_select_related = ("room", "task")
    search_fields = ("text", "episode", "room__slug")


@admin.register(Token)
class TokenAdmin(ReadOnlyAdmin):
    list_display = ("id", "kind", "name", "user", "room", "role", "created_at", "expires_at", "revoked_at")
    list_filter = ("kind", "created_at", "revoked_at")
    list_select_related = ("user", "room")
    search_fields = ("name", "user__username", "room__slug", "role")
    exclude = ("hash",)
    actions = ("revoke",)

    def has_act_permission(self, request: HttpRequest) -> bool:
        return may_act(self, request)

    @admin.action(description="Revoke", permissions=["act"])
    def revoke(self, request: HttpRequest, tokens: QuerySet[Token]) -> None:
        count = revoke_tokens(Q(pk__in=list(tokens.values_list("pk", flat=True))))
        messages.success(request, f"{count} revoked")


@admin.register(DeviceGrant)
class DeviceGrantAdmin(ReadOnlyAdmin):
    list_display = ("client", "state", "user", "created_at", "expires_at")
    list_filter = ("state", "created_at")
    list_select_related = ("user",)
    search_fields = ("client", "user__username")
    exclude = ("device_hash",)


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    list_display = ("id", "kind", "state", "attempts", "due_at", "sent_at", "done_at", "last_error")
    list_filter = ("state", "kind")
    search_fields = ("=id", "kind", "last_error")


@admin.register(IdempotencyRecord)
class IdempotencyRecordAdmin(ReadOnlyAdmin):
    list_display = ("principal", "act", "key", "status_code", "created_at")
    list_filter = ("act", "status_code")
    search_fields = ("principal", "key")


@admin.register(Pulse)
class PulseAdmin(ReadOnlyAdmin):
    list_display = ("id", "beat_at", "quiet_until", "swept_at")
    search_fields = ("=id",)
    list_filter = ("beat_at",)
