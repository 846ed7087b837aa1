"""HTTP to the server: one kept connection, patience with outages, errors as the protocol names them."""

from __future__ import annotations

import http.client
import json
import os
import time
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from chatroom.client.environment import seconds_in
from chatroom.client.errors import UNREACHABLE, ClientError, refusal
from chatroom.client.output import say

CONNECT_SECONDS, ANSWER_SECONDS = 10, 30
RETRIED = {429, 502, 503, 504}


class Outage(Exception):
    """The server could not serve the call now; `after` is its own word on when it can."""

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def default_patience() -> float:
    return seconds_in("CHATROOM_PATIENCE", default=60)


def random_key() -> str:
    return os.urandom(16).hex()


def path(*parts: object) -> str:
    return "/".join(quote(str(part), safe="") for part in parts)


class Server:
    def __init__(self, url: str, token: str, *, patience: float | None) -> None:
        self.connection: http.client.HTTPConnection | None = None
        self.url, self.patience = url, patience
        self.base = urlsplit(url)
        self.headers = {"Accept": "application/json", "User-Agent": "chatroom-client"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"
        self.is_lost = False

    def get(self, resource: str, *, hold: float = 0, **query: object) -> dict[str, Any]:
        """`hold`: seconds the server may keep the answer back until there is something to tell."""
        given = {name: value for name, value in query.items() if value is not None}
        target = f"{resource}?{urlencode(given)}" if given else resource
        return self._call("GET", target, body=None, headers=self.headers, limit=ANSWER_SECONDS + hold)

    def post(self, resource: str, body: dict[str, Any] | None = None, *, key: str | None = None) -> dict[str, Any]:
        """One key for all tries of one start: the effect happens once, and a try after a lost answer gets the first answer."""
        headers = {**self.headers, "Content-Type": "application/json", "Idempotency-Key": key or random_key()}
        return self._call("POST", resource, body=json.dumps(body or {}).encode(), headers=headers, limit=ANSWER_SECONDS)

    def put(self, resource: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {**self.headers, "Content-Type": "application/json", "Idempotency-Key": random_key()}
        return self._call("PUT", resource, body=json.dumps(body).encode(), headers=headers, limit=ANSWER_SECONDS)

    def __del__(self) -> None:
        self.close()  # a command ends with its connection, also inside a longer process

    def close(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None

    def _call(self, method: str, resource: str, *, body: bytes | None, headers: dict[str, str], limit: float) -> dict[str, Any]:
        target = f"{self.base.path}/api/v1/{resource}"
        began, tries = time.monotonic(), 0
        while True:
            was_kept = self.connection is not None
            try:
                answer = self._once(method, target, body=body, headers=headers, limit=limit)
            except Outage as outage:
                if was_kept and outage.after is None and not tries:
                    continue  # the server ended an idle connection: that is no outage yet
                self._pause(outage, tries=tries, began=began)
                tries += 1
                continue
            if self.is_lost:
                self.is_lost = False
                say("the server is back")
            return self._read(answer, asked=f"{method} {target}")

    def _once(self, method: str, target: str, *, body: bytes | None, headers: dict[str, str], limit: float) -> Answer:
        try:
            connection = self.connection = self.connection or self._new_connection()
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(limit)
            connection.request(method, target, body=body, headers=headers)
            response = connection.getresponse()
            answer = Answer(response.status, response.headers, response.read())
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if type(error).__name__ == "SSLCertVerificationError":
                raise ClientError(f"{self.url}: {error}", exit_code=UNREACHABLE, code="unreachable") from None
            raise Outage(str(error) or type(error).__name__) from error
        if answer.status in RETRIED:
            raise Outage(says(answer), after=retry_after(answer))
        return answer

    def _new_connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.base.scheme == "https" else http.client.HTTPConnection
        return kind(self.base.hostname or "", self.base.port, timeout=CONNECT_SECONDS)

    def _pause(self, outage: Outage, *, tries: int, began: float) -> None:
        import random

        delay = outage.after if outage.after is not None else random.uniform(0.1, min(10.0, 0.5 * 2**tries))
        left = float("inf") if self.patience is None else self.patience - (time.monotonic() - began)
        if delay > left:
            raise ClientError(f"{self.url} is not reachable: {outage}", exit_code=UNREACHABLE, code="unreachable") from outage
        if not self.is_lost:
            self.is_lost = True
            until = "until it is back" if self.patience is None else f"for {self.patience:g} s"
            say(f"server lost: {self.url}: {outage}; trying again {until}")
        time.sleep(delay)

    def _read(self, answer: Answer, *, asked: str) -> dict[str, Any]:
        if answer.status == 204 or (answer.status < 300 and not answer.body):
            return {}
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if answer.status < 300 and isinstance(found, dict):
            return found
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            raise refusal(found["error"], status=answer.status)
        if answer.status >= 500:
            raise ClientError(f"{asked} answered {answer.status}: the server failed, its log says why")
        where = f" to {answer.headers['Location']}" if answer.headers["Location"] else ""
        raise ClientError(f"{asked} answered {answer.status}{where} without a word of the protocol: is {self.url} a Chatroom server?")


def says(answer: Answer) -> str:
    try:
        return str(json.loads(answer.body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"it answers {answer.status}"


def retry_after(answer: Answer) -> float | None:
    try:
        return max(0.1, float(answer.headers["Retry-After"]))
    except (TypeError, ValueError):
        return None  # absent, or a date: our own back-off is as good
