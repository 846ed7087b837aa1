"""The description of the API, for programs and for people who are signed in. Both come through the pages' stack, which knows sessions."""

from collections.abc import Callable
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse

from .api_tools import refuse
from .errors import NotSignedIn
from .principals import bearer_of, resolve_token

PATHS = ("/api/v1/docs", "/api/v1/openapi.json")


def for_signed_in(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """A session or a token. Without one a program is told so, and a person is sent to sign in."""

    def wrapper(request: HttpRequest, **rest: Any) -> HttpResponse:
        try:
            if not request.user.is_authenticated:
                resolve_token(bearer_of([(b"authorization", request.headers.get("Authorization", "").encode())]))
        except NotSignedIn as error:
            return refuse(error) if request.path.endswith(".json") else redirect_to_login(request.get_full_path())
        return view(request, **rest)

    return wrapper
