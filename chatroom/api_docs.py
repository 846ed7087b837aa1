"""The page that explains the API: all of it from our own files, under the policy of every other page."""

from collections.abc import Callable
from typing import Any

from csp.utils import build_policy
from django.http import HttpRequest, HttpResponse


def under_our_policy(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The API's short stack of middleware has none that would say it."""

    def wrapper(request: HttpRequest, **rest: Any) -> HttpResponse:
        response = view(request, **rest)
        response.headers["Content-Security-Policy"] = build_policy()
        return response

    return wrapper
