"""How every endpoint answers: authorise, call one service, translate what it raises. The rules are in the services."""

import json
import logging
from collections.abc import Awaitable, Callable
from math import ceil
from typing import Annotated, Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DataError, InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware
from ninja import NinjaAPI, Path
from ninja.errors import HttpError, ValidationError
from ninja.security import HttpBearer
from pydantic import AfterValidator

from .db import in_db, in_read
from .errors import ChatroomError, Invalid, NotSignedIn, TooLarge, TooMany, Unavailable, WrongMethod
from .idempotency import Once
from .principals import Principal, resolve_token
from .rates import buckets

log = logging.getLogger(__name__)
Work = Callable[[Principal], Any]


def clean_line(value: str) -> str:
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError("expected text without NUL and lone surrogates")
    if len(value) > 4000:
        raise ValueError(f"found {len(value)} characters, expected at most 4000")
    return value


Line = Annotated[str, AfterValidator(clean_line)]
Id = Annotated[int, Path(ge=1, le=2**63 - 1)]


@async_only_middleware
def HeadersMiddleware(get_response: Callable[[HttpRequest], Awaitable[HttpResponse]]) -> Callable[..., Awaitable[HttpResponse]]:  # noqa: N802
    """The headers of Django's SecurityMiddleware without its two thread hops per request."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        response = await get_response(request)
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Referrer-Policy", settings.SECURE_REFERRER_POLICY)
        response.headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
        return in_our_words(request, response)

    return middleware


def in_our_words(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """Whoever decides which methods there are answers in HTML: programs expect the shape of every other error."""
    if response.status_code != 405:
        return response
    allowed = sorted(method.strip() for method in response.headers.get("Allow", "").split(",") if method.strip())
    expected = f"expected {' or '.join(allowed)}" if allowed else "there is no such act here"
    response.content = json.dumps({"error": WrongMethod(f"{request.method} {request.path[:200]}: {expected}", allowed=allowed).as_json()})
    response.headers["Content-Type"], response.headers["Content-Length"] = "application/json", str(len(response.content))
    return response


class Bearer(HttpBearer):
    """Only takes the token from the header: it is looked up in the same trip to the database as the act itself."""

    async def authenticate(self, request: HttpRequest, token: str) -> str:
        buckets.take(token)
        return token


def reply(status: int, answer: Any) -> HttpResponse:
    if answer is None:
        return HttpResponse(status=status)
    body = json.dumps(answer, cls=DjangoJSONEncoder).encode()
    # With its length known, Daphne writes it in one piece instead of chunks.
    return HttpResponse(body, status=status, content_type="application/json", headers={"Content-Length": str(len(body))})


async def perform(request: Any, act: str, work: Work, *, body: Any = None, status: int = 200) -> HttpResponse:
    """An act: at most once per Idempotency-Key, in one trip to the database."""
    key = request.headers.get("Idempotency-Key", "")

    def run() -> tuple[int, Any]:
        principal = resolve_token(request.auth)
        return Once(principal.key, act, key, body).run(lambda: (status, work(principal)))

    return reply(*await in_db(run))


async def show(request: Any, work: Work) -> HttpResponse:
    """A reading."""
    return reply(200, await in_read(lambda: work(resolve_token(request.auth))))


def refuse(error: ChatroomError) -> HttpResponse:
    response = reply(error.status, {"error": error.as_json()})
    if error.status in (429, 503):
        response["Retry-After"] = str(ceil(error.after) if isinstance(error, TooMany) else 1)
    return response


def translate_errors(api: NinjaAPI) -> None:
    """Every error of every endpoint has the same shape."""

    @api.exception_handler(ChatroomError)
    def known(request: HttpRequest, error: ChatroomError) -> HttpResponse:
        return refuse(error)

    @api.exception_handler(ValidationError)
    def unreadable(request: HttpRequest, error: ValidationError) -> HttpResponse:
        what = "; ".join(f"{'.'.join(str(part) for part in item['loc'][1:])}: {item['msg']}" for item in error.errors[:5])
        return reply(400, {"error": ChatroomError(what).as_json()})

    @api.exception_handler(HttpError)
    def refused(request: HttpRequest, error: HttpError) -> HttpResponse:
        if error.status_code == 401:
            return refuse(NotSignedIn("no token, or one that is not known: sign in with the login command"))
        return reply(error.status_code, {"error": ChatroomError(str(error)).as_json()})

    @api.exception_handler(RequestDataTooBig)
    def too_big(request: HttpRequest, error: RequestDataTooBig) -> HttpResponse:
        return refuse(TooLarge("the request is too large: expected at most 2 MiB"))

    @api.exception_handler(Exception)
    def unexpected(request: HttpRequest, error: Exception) -> HttpResponse:
        log.error("%s %s failed", request.method, request.path, exc_info=error)
        return reply(500, {"error": ChatroomError("the server failed; its log says why", code="unexpected").as_json()})

    @api.exception_handler(DataError)
    def unstorable(request: HttpRequest, error: DataError) -> HttpResponse:
        return refuse(Invalid(f"the request has something that can't be stored: {error}"))

    for away in (OperationalError, InterfaceError):

        @api.exception_handler(away)
        def unavailable(request: HttpRequest, error: Exception) -> HttpResponse:
            return refuse(Unavailable("the database can't serve this now: try again"))
