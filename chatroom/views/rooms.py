from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.db.models import Max
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST, require_safe

from chatroom.board import read_board
from chatroom.errors import ChatroomError, NotFound
from chatroom.models import Event, MemberRole, Membership, Message
from chatroom.nav import read_nav
from chatroom.panel import Attention, read_cards, read_people
from chatroom.services.messages import add_backlog_item
from chatroom.services.messages import send_message as send
from chatroom.services.rooms import add_member, create_room
from chatroom.services.tasks import TASK_ACTS
from chatroom.stream import read_stream

from .access import PageRequest, done, require_owner, room_act, room_page, server_url

PANES = {"where", "chat", "team"}
SAID = {
    "move_to_queue": "Moved to the queue.",
    "cancel": "Closed.",
    "reset": "Reset: offered anew.",
    "retry": "Tried again.",
    "force_complete": "Completed.",
    "approve": "Approved.",
    "send_back": "Sent back.",
    "reopen": "Opened again.",
}


@require_safe
@login_required
def home(request: PageRequest) -> HttpResponse:
    return render(request, "chatroom/home.html", {"rows": read_nav(request.user)})


@require_POST
@login_required
def room_create(request: PageRequest) -> HttpResponse:
    team = request.POST.get("team", "")
    team = request.POST.get("roles", "") if team == "custom" else team
    try:
        room = create_room(request.POST.get("name", ""), team=team, fail_fast="fail_fast" in request.POST, owner=request.user)
    except ChatroomError as error:
        context = {"rows": read_nav(request.user), "error": error.message, "typed": request.POST}
        return render(request, "chatroom/home.html", context, status=error.status)
    return redirect("room", slug=room.slug)


@require_safe
@room_page
def room(request: PageRequest, membership: Membership) -> HttpResponse:
    """The cursor is read first: what the page shows is never older than it says, and what it shows already is not shown twice."""
    found = membership.room
    cursor = Event.objects.filter(room=found).aggregate(last=Max("pk"))["last"] or 0
    rows, has_earlier = read_stream(found)
    context = {"room": found, "membership": membership, "cursor": cursor, "rows": rows, "has_earlier": has_earlier}
    context |= {"can_act": membership.can_act, "is_owner": membership.role == MemberRole.OWNER, "server_url": server_url(request)}
    context |= {"board": read_board(found), "attention": Attention(read_cards(found)), "memberships": read_people(found)}
    pane = request.GET.get("pane", "chat")
    return render(request, "chatroom/room.html", context | {"pane": pane if pane in PANES else "chat"})


@require_safe
@room_page
def earlier_messages(request: PageRequest, membership: Membership, before: int) -> HttpResponse:
    rows, has_earlier = read_stream(membership.room, before=before)
    context = {"room": membership.room, "rows": rows, "has_earlier": has_earlier}
    return render(request, "chatroom/_messages_rows.html" if request.htmx else "chatroom/earlier.html", context)


@require_safe
@room_page
def message_text(request: PageRequest, membership: Membership, message_id: int) -> HttpResponse:
    """A long message as it was sent."""
    message = get_object_or_404(Message, pk=message_id, room=membership.room)
    return HttpResponse(message.text, content_type="text/plain; charset=utf-8")


@room_act
def send_message(request: PageRequest, membership: Membership) -> HttpResponse:
    sent = send(membership.room_id, text=request.POST.get("text", ""), to=request.POST.get("to", ""), author=request.user)
    return done(
        request, membership, f"Sent: task {sent.task.pk} is {sent.task.get_status_display().lower()}.", anchor=f"message-{sent.message.pk}"
    )


@room_act
def backlog_add(request: PageRequest, membership: Membership) -> HttpResponse:
    text, to = request.POST.get("text", ""), request.POST.get("to", "")
    task = add_backlog_item(membership.room_id, text=text, to=to, author=request.user)
    return done(request, membership, f"Task {task.pk} is in the backlog.", anchor=f"task-{task.pk}")


@room_act
def task_act(request: PageRequest, membership: Membership, task_id: int, act: str) -> HttpResponse:
    if act not in TASK_ACTS:
        raise NotFound(f"there is no act {act!r}: expected one of {', '.join(TASK_ACTS)}")
    actor = request.user.get_username()
    TASK_ACTS[act](membership.room_id, task_id=task_id, actor=actor, reason=request.POST.get("reason", ""))
    return done(request, membership, SAID[act], anchor=f"task-{task_id}")


@require_safe
@room_page
def task_history(request: PageRequest, membership: Membership, task_id: int) -> HttpResponse:
    events = Event.objects.filter(room=membership.room, subject="task", subject_id=task_id).order_by("-pk")[:50]
    return render(request, "chatroom/_history.html", {"events": events})


@room_act
def member_add(request: PageRequest, membership: Membership) -> HttpResponse:
    require_owner(membership)
    username, role = request.POST.get("username", "").strip(), request.POST.get("role", "")
    user = User.objects.filter(username=username, is_active=True).first() if username.isprintable() else None
    if user is None:
        raise NotFound(f"there is nobody called {username[:150]!r}: they need an account first")
    add_member(membership.room, user=user, role=role, actor=request.user.get_username())
    return done(request, membership, f"{user} is {role} now.", anchor="people")
