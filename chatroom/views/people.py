"""Signing in: with a password, with a one-time link, and for a terminal that shows a code."""

from django.contrib import messages
from django.contrib.auth import login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from chatroom.errors import ChatroomError
from chatroom.services.tokens import approve_device_grant, deny_device_grant, find_grant, redeem_sign_in_link

from .access import PageRequest

sign_in = LoginView.as_view(template_name="chatroom/sign_in.html", redirect_authenticated_user=True)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("sign_in")


@never_cache
@require_GET
def sign_in_link(request: HttpRequest, secret: str) -> HttpResponse:
    """Works once, so what a browser fetches ahead of a click must not use it up."""
    if "prefetch" in (request.headers.get("Sec-Purpose", "") + request.headers.get("Purpose", "")):
        return HttpResponse(status=204)
    try:
        user = redeem_sign_in_link(secret)
    except ChatroomError as error:
        return render(request, "chatroom/sign_in_refused.html", {"message": error.message}, status=error.status)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("home")


@never_cache
@require_http_methods(["GET", "POST"])
@login_required
def device(request: PageRequest) -> HttpResponse:
    """A terminal wants to act for this person: they compare its code, then approve or deny."""
    code = (request.POST.get("code") or request.GET.get("code") or request.GET.get("user_code") or "").strip()
    if request.method == "POST" and request.POST.get("decision") in {"approve", "deny"}:
        return decide_device(request, code, is_approved=request.POST["decision"] == "approve")
    try:
        grant = find_grant(code) if code else None
    except ChatroomError as error:
        return render(request, "chatroom/device.html", {"code": code, "error": error.message}, status=error.status)
    return render(request, "chatroom/device.html", {"code": code, "grant": grant})


def decide_device(request: PageRequest, code: str, *, is_approved: bool) -> HttpResponse:
    decide = approve_device_grant if is_approved else deny_device_grant
    try:
        grant = decide(code, user=request.user)
    except ChatroomError as error:
        return render(request, "chatroom/device.html", {"code": code, "error": error.message}, status=error.status)
    messages.success(request, f"{grant.client} is signed in as {request.user}." if is_approved else f"{grant.client} was denied.")
    return redirect("home")
