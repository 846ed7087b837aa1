"""Waiting for work on `/ws/agent/`: one incarnation, as many connections as it takes, until a task is confirmed as ours."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from chatroom.client.environment import seconds_in
from chatroom.client.errors import SUPERSEDED, TIMED_OUT, UNEXPECTED, UNREACHABLE, ClientError, refusal
from chatroom.client.output import one_line, say
from chatroom.client.websocket import Closed, ConnectionLost, HandshakeRefused, WebSocket, connect

if TYPE_CHECKING:
    from collections.abc import Callable

PING_SECONDS, UNANSWERED_PINGS = 5.0, 4  # 20 s of silence: counted in pings, so that a process that was stopped hears before it judges
WELCOME_SECONDS, CONFIRM_SECONDS, LEAVE_SECONDS = 20.0, 5.0, 2.0
# A socket closed with a code but without the message that explains it.
CLOSED_FOR_GOOD = {
    4400: {"code": "protocol", "message": "the server did not understand this client: are both of the same version?"},
    4401: {"code": "not_signed_in", "message": "the token is not valid any more"},
    4403: {"code": "role_not_yours", "message": "the server refused this role"},
    4409: {"code": "superseded", "message": "a newer start took over"},
}


class Waiting:
    def __init__(
        self, url: str, token: str, *, room: str, role: str, seconds: float | None, meanwhile: Callable[[], object] = lambda: None
    ) -> None:
        """`meanwhile` is called once, when we wait: the time to load what will be needed later."""
        self.url, self.token, self.room, self.role = url, token, room, role
        self.incarnation = os.urandom(16).hex()
        self.seconds, self.meanwhile = seconds, meanwhile
        self.first_try_within = seconds_in("CHATROOM_RECONNECT_WITHIN", default=5)
        self.longest_pause = seconds_in("CHATROOM_RECONNECT_PAUSE", default=30)
        self.until = float("inf") if seconds is None else time.monotonic() + seconds
        self.socket: WebSocket | None = None
        self.task: dict[str, Any] | None = None  # the offer we said `received` to
        self.has_joined = self.said_hello = self.is_welcome = self.is_lost = False
        self.renew_seconds, self.renew_at, self.ping_at, self.welcome_by = 30.0, 0.0, 0.0, 0.0
        self.unanswered, self.heard_at_ping = 0, 0.0
        self.tries = self.connections = 0
        self.retry_after: float | None = None

    # --- until there is a task

    def until_task(self) -> dict[str, Any]:
        while True:
            try:
                self._attach()
                return self._next_task()
            except ConnectionLost as lost:
                self._drop()
                raise_if_final(lost, has_joined=self.has_joined)
                self._pause(lost)

    def _attach(self) -> None:
        refuse_without_reader()
        self.socket = connect(self.url, target="/ws/agent/", token=self.token, seconds=min(10, max(1, self._left())))
        self.connections += 1
        hello = {"type": "hello", "protocol": 1, "room": self.room, "role": self.role, "incarnation": self.incarnation}
        self.said_hello = True
        self.socket.send({**hello, "connection": self.connections, "joined": self.has_joined})
        now = time.monotonic()
        self.welcome_by, self.ping_at = now + WELCOME_SECONDS, now + PING_SECONDS
        self.unanswered, self.heard_at_ping = 0, 0.0

    def _next_task(self) -> dict[str, Any]:
        while True:
            message = self._socket().receive(self._seconds_to_act())
            if message and self._handle(message) and self.task:
                return self.task
            self._keep_alive()
            if self._left() <= 0:
                self._time_is_over()

    def _handle(self, message: dict[str, Any]) -> bool:
        """True when the task we hold is confirmed as ours. Unknown messages are a newer server's, and ignored."""
        match message["type"]:
            case "welcome":
                self._welcomed(message)
            case "offer":
                self._take(message)
            case "confirmed":
                return self.task is not None and message.get("claim") == self.task["claim"]
            case "withdrawn" if self.task and message.get("claim") == self.task["claim"]:
                self.task = None
            case "renewed" if message.get("answer") == "resume":
                say(f"{self.role} had been declared dead, and is back")
            case "superseded":
                raise ClientError(str(message.get("message", "a newer start took over")), exit_code=SUPERSEDED, code="superseded")
            case "refused" | "error" as kind:
                raise refusal(message["error"], status=409 if kind == "refused" else 500)
            case "retry":
                self.retry_after = float(message.get("after") or 1)
                raise ConnectionLost(str(message.get("message", "it cannot serve us now")))
        return False

    def _welcomed(self, message: dict[str, Any]) -> None:
        if not self.has_joined and self.seconds is not None:
            # The time-out is for waiting; half a second at least, so that --timeout 0 takes what is there.
            self.until = time.monotonic() + max(self.seconds, 0.5)
        back = "the server is back: " if self.is_lost else ""
        if back or not self.has_joined:
            say(f"{back}waiting for work as {self.role} in {one_line(message.get('room', {}).get('slug', self.room))}…")
        if not self.has_joined:
            self.meanwhile()
        self.has_joined = self.is_welcome = True
        self.is_lost, self.tries = False, 0
        self.renew_seconds = float(message.get("renew_seconds", self.renew_seconds))
        self.renew_at = time.monotonic() + self.renew_seconds

    def _take(self, offer: dict[str, Any]) -> None:
        refuse_without_reader()
        self.task = offer
        self._socket().send({"type": "received", "claim": offer["claim"]})
        self.until = max(self.until, time.monotonic() + CONFIRM_SECONDS)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        if not self.is_welcome and now >= self.welcome_by:
            raise ConnectionLost(f"no welcome for {WELCOME_SECONDS:g} s")
        if self.is_welcome and now >= self.renew_at:
            self._socket().send({"type": "renew"})
            self.renew_at = now + self.renew_seconds
        if now >= self.ping_at:
            self._ping(now)

    def _ping(self, now: float) -> None:
        refuse_without_reader()
        was_heard = self._socket().last_heard > self.heard_at_ping
        self.unanswered = 0 if was_heard else self.unanswered + 1
        if self.unanswered >= UNANSWERED_PINGS:
            raise ConnectionLost(f"silent for {PING_SECONDS * UNANSWERED_PINGS:g} s")
        self.heard_at_ping = self._socket().last_heard
        self._socket().ping()
        self.ping_at = now + PING_SECONDS

    # --- time

    def _left(self) -> float:
        return self.until - time.monotonic()

    def _seconds_to_act(self) -> float:
        next_act = min(self.ping_at, self.renew_at) if self.is_welcome else min(self.ping_at, self.welcome_by)
        return max(0.0, min(next_act, self.until) - time.monotonic())

    def _time_is_over(self) -> None:
        if not self.is_welcome:
            raise unreachable(self.url, "it does not welcome us", seconds=self.seconds)
        raise ClientError(f"no task in {self.seconds:g} s", exit_code=TIMED_OUT, code="timeout")

    def _pause(self, lost: ConnectionLost) -> None:
        """Full jitter, so that a fleet that lost its server together does not come back together."""
        from random import uniform

        if not self.is_lost:
            self.is_lost = True
            say(f"server lost: {self.url}: {one_line(lost)}; trying again until it is back")
        if self.retry_after is not None:
            delay, self.retry_after = self.retry_after * uniform(0.5, 1.5), None
        else:
            delay = uniform(0, min(self.longest_pause, 2 ** (self.tries - 1)) if self.tries else self.first_try_within)
        self.tries = min(self.tries + 1, 10)
        left = self._left()
        time.sleep(max(0, min(delay, left)))
        if delay >= left:
            raise unreachable(self.url, one_line(lost), seconds=self.seconds)

    # --- the end

    def end(self, exit_code: int) -> None:
        """Takes leave as the exit code demands: the lease bridges to the next call after a time-out, else the role goes offline."""
        if exit_code == TIMED_OUT and not self.task:
            self.bye("timeout")
        elif exit_code in {UNEXPECTED, TIMED_OUT}:  # timed out between an offer and its confirmation: it must not stay with us
            self.leave()
        self._drop()

    def bye(self, reason: str) -> None:
        if self.socket:
            try:
                self.socket.send({"type": "bye", "reason": reason})
                self.socket.close(seconds=1)
            except ConnectionLost:
                pass  # what had to be said was said before; the lease bridges
            self._drop()

    def leave(self) -> None:
        until = time.monotonic() + LEAVE_SECONDS
        if self.said_hello and not self._left_by_socket(until):
            self._leave_by_http(until)
        self._drop()

    def _left_by_socket(self, until: float) -> bool:
        if not self.socket:
            return False
        try:
            self.socket.send({"type": "leave"})
            while (left := until - time.monotonic()) > 0:
                if (self.socket.receive(left) or {}).get("type") == "left":
                    self.socket.close()
                    return True
        except ConnectionLost:
            pass  # there is another way
        return False

    def _leave_by_http(self, until: float) -> None:
        from threading import Thread

        from chatroom.client.server import Server, path

        def post() -> None:
            try:
                server = Server(self.url, self.token, patience=0)
                server.post(path("rooms", self.room, "agents", self.role, "leave"), {"incarnation": self.incarnation})
            except (ClientError, OSError):
                pass  # the server sees our lease end by itself

        # In a thread of its own, because nothing else bounds the look-up of a name.
        thread = Thread(target=post, daemon=True)
        thread.start()
        thread.join(max(0.1, until - time.monotonic()))

    def _drop(self) -> None:
        if self.socket:
            self.socket.socket.close()
        self.socket, self.is_welcome, self.task = None, False, None

    def _socket(self) -> WebSocket:
        assert self.socket is not None
        return self.socket


def raise_if_final(lost: ConnectionLost, *, has_joined: bool) -> None:
    """Most losses are waited out; these are answers."""
    if isinstance(lost, Closed) and lost.code in CLOSED_FOR_GOOD:
        raise refusal(CLOSED_FOR_GOOD[lost.code], status=500 if lost.code == 4400 else 409) from lost
    if type(lost.__cause__).__name__ == "SSLCertVerificationError":  # by name: a plain connection does not load ssl
        raise ClientError(str(lost), exit_code=UNREACHABLE, code="unreachable") from lost
    if not isinstance(lost, HandshakeRefused):
        return
    if lost.status in {401, 403}:
        raise refusal({"code": "not_signed_in", "message": "the server does not know this token: sign in again"}) from lost
    if lost.status not in {408, 429, 500, 502, 503, 504} and not has_joined:
        raise ClientError(f"{lost}: is there a Chatroom server at this address?") from lost


def unreachable(url: str, reason: str, *, seconds: float | None) -> ClientError:
    return ClientError(f"no task in {seconds:g} s, and {url} is not reachable: {reason}", exit_code=UNREACHABLE, code="unreachable")


def refuse_without_reader() -> None:
    """When the program that would read the task is gone, no task must be taken: nobody would work on it."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLERR)
        is_gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        is_gone = sys.stdout is None  # else captured by a test, or by a program that embeds us
    if is_gone:
        raise ClientError("standard output is closed: nobody would read the task", code="output_closed")
