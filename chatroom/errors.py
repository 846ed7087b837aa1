"""What can be wrong with a request, in words for the person who reads it. Pages, API and sockets translate it, nobody else."""

from collections.abc import Iterable
from typing import Any


class ChatroomError(Exception):
    """Something about the request is wrong; nothing was changed."""

    code = "invalid"
    status = 400

    def __init__(self, message: str, *, current: str | None = None, allowed: Iterable[str] = (), code: str = "") -> None:
        super().__init__(message)
        self.message, self.current, self.allowed = message, current, list(allowed)
        self.code = code or self.code

    def as_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "current": self.current, "allowed": self.allowed}


class Invalid(ChatroomError):
    """The request says something that can't be meant."""


class NotSignedIn(ChatroomError):
    """No token, or one that is unknown, revoked or expired."""

    code, status = "not_signed_in", 401


class NotAllowed(ChatroomError):
    """Known, but this is not theirs to do."""

    code, status = "not_allowed", 403


class NotFound(ChatroomError):
    """No such thing, or not visible to this reader."""

    code, status = "not_found", 404


class WrongMethod(ChatroomError):
    """There is something at this address, but not for this method."""

    code, status = "wrong_method", 405


class WrongState(ChatroomError):
    """The move is not declared from the current state; nothing was changed."""

    code, status = "wrong_state", 409


class OutdatedClaim(ChatroomError):
    """The claim is no longer the one that counts."""

    code, status = "outdated_claim", 409


class Superseded(ChatroomError):
    """A newer start of the same agent took over."""

    code, status = "superseded", 409


class RoleNotYours(ChatroomError):
    """This token or person can't act for this role."""

    code, status = "role_not_yours", 409


class TooLarge(ChatroomError):
    """More than this server takes."""

    code, status = "too_large", 413


class KeyReused(ChatroomError):
    """The same Idempotency-Key came with another body."""

    code, status = "key_reused", 422


class TooMany(ChatroomError):
    """Too many requests in too short a time; the same one may be served after so many seconds."""

    code, status = "too_many", 429

    def __init__(self, message: str, *, after: float = 1) -> None:
        super().__init__(message)
        self.after = after


class Unavailable(ChatroomError):
    """The server can't serve this now; the same request may succeed soon."""

    code, status = "unavailable", 503
