"""Who may open and who may press. Every page begins with the person's own rooms, so a stranger's answer is 404 by construction."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.html import format_html
from django.views.decorators.http import require_POST
from django_htmx.middleware import HtmxDetails

from chatroom.errors import ChatroomError, NotAllowed
from chatroom.models import MemberRole, Membership

View = Callable[..., HttpResponse]


class PageRequest(HttpRequest):
    """A request as our middleware leaves it, behind `login_required`."""

    user: User  # type: ignore[assignment]
    htmx: HtmxDetails


def server_url(request: HttpRequest) -> str:
    """The address under which people reach us, for links and for commands to paste."""
    return settings.PUBLIC_URL.rstrip("/") or request.build_absolute_uri("/").rstrip("/")


def find_membership(request: PageRequest, slug: str) -> Membership:
    membership = Membership.objects.select_related("room").filter(user=request.user.pk, room__slug=slug).first()
    if membership is None:
        raise Http404("there is no such room")
    return membership


def room_page(view: View) -> View:
    """For members: the view gets the membership in place of the room's slug."""

    @login_required
    @wraps(view)
    def wrapper(request: PageRequest, slug: str, **rest: Any) -> HttpResponse:
        return view(request, find_membership(request, slug), **rest)

    return wrapper


def room_act(view: View) -> View:
    """For members who may act: a press. What is wrong with it is said where the button is, or, without JavaScript, on top of the page."""

    @require_POST
    @login_required
    @wraps(view)
    def wrapper(request: PageRequest, slug: str, **rest: Any) -> HttpResponse:
        membership = find_membership(request, slug)
        try:
            require_actor(membership)
            return view(request, membership, **rest)
        except ChatroomError as error:
            return refused(request, membership, error)

    return wrapper


def require_actor(membership: Membership) -> None:
    if not membership.can_act:
        raise NotAllowed(f"You are {membership.role} of {membership.room.name}: you can watch, not act.")


def require_owner(membership: Membership) -> None:
    if membership.role != MemberRole.OWNER:
        raise NotAllowed(f"You are {membership.role} of {membership.room.name}: only an owner can do this.")


def refused(request: PageRequest, membership: Membership, error: ChatroomError) -> HttpResponse:
    if isinstance(error, NotAllowed) and not request.htmx:
        raise PermissionDenied(error.message)
    if request.htmx:
        return HttpResponse(format_html('<span class="error" role="alert">{}</span>', error.message), status=error.status)
    messages.error(request, error.message)
    return redirect("room", slug=membership.room.slug)


def done(request: PageRequest, membership: Membership, said: str, *, anchor: str = "") -> HttpResponse:
    """The outcome stands where the button was. The state comes over the socket: an answer overtaken by a newer change does no harm."""
    if request.htmx:
        return render(request, "chatroom/_outcome.html", {"said": said})
    messages.success(request, said)
    response = redirect("room", slug=membership.room.slug)
    response["Location"] += f"#{anchor}" if anchor else ""
    return response
