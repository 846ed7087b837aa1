"""Requests that meet no endpoint, or come under a name that is not ours: told in the caller's language."""

from django.http import HttpRequest, HttpResponse
from django.views.defaults import page_not_found

from .api_tools import refuse
from .errors import Invalid, NotFound


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """A program that names a room `a/b` asks for a path that does not exist: it expects JSON all the same."""
    if request.path.startswith("/api/"):
        return refuse(NotFound(f"there is no {request.path[:200]}: /api/v1/openapi.json says what there is"))
    return page_not_found(request, exception)


def not_our_name(request: HttpRequest, error: Exception | type[Exception]) -> HttpResponse:
    name = request.META.get("HTTP_HOST", "")[:100]
    return refuse(Invalid(f"this server is not known as {name!r}: expected one of its names, which CHATROOM_ALLOWED_HOSTS lists"))
