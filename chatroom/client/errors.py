"""What ends a command, and with which exit code."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

UNEXPECTED, USAGE, NOT_ALLOWED, NOT_FOUND, REFUSED, SUPERSEDED, TIMED_OUT, UNREACHABLE, WORK_FAILED = range(1, 10)

EXIT_BY_CODE = {
    "invalid": USAGE,
    "too_large": USAGE,
    "not_signed_in": NOT_ALLOWED,
    "not_allowed": NOT_ALLOWED,
    "superseded": SUPERSEDED,
    "too_many": UNREACHABLE,
    "unavailable": UNREACHABLE,
}
EXIT_BY_STATUS = {
    **dict.fromkeys((400, 413), USAGE),
    **dict.fromkeys((401, 403), NOT_ALLOWED),
    404: NOT_FOUND,
    **dict.fromkeys((409, 422), REFUSED),
    **dict.fromkeys((429, 503), UNREACHABLE),
}
# Refusals on the waiting socket carry a code and no HTTP status.
EXIT_BY_PREFIX = {"no_such_": NOT_FOUND, "not_found": NOT_FOUND}


class ClientError(Exception):
    """The command cannot be done: the reason in one line, as the server or we say it."""

    def __init__(
        self, message: str, *, exit_code: int = UNEXPECTED, code: str = "unexpected", answer: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.exit_code, self.code = message, exit_code, code
        self.answer = answer or {}
        self.hint = ""  # a command to paste that goes on from here

    def as_json(self) -> dict[str, object]:
        error = {
            "code": self.code,
            "message": self.message,
            "current": self.answer.get("current"),
            "allowed": self.answer.get("allowed") or [],
        }
        return {"error": error}


def usage_error(message: str) -> ClientError:
    return ClientError(message, exit_code=USAGE, code="usage")


def refusal(error: Mapping[str, object], *, status: int = 409) -> ClientError:
    """The server's own error object, with the exit code that the protocol gives to its code, else to the HTTP status."""
    code = str(error.get("code", "unexpected"))
    exit_code = EXIT_BY_CODE.get(code) or next((found for prefix, found in EXIT_BY_PREFIX.items() if code.startswith(prefix)), None)
    return ClientError(
        str(error.get("message", code)), exit_code=exit_code or EXIT_BY_STATUS.get(status, UNEXPECTED), code=code, answer=error
    )
