"""A WebSocket of one's own, plain or TLS: enough of RFC 6455 for JSON in text frames, in little code that starts fast."""

from __future__ import annotations

import binascii
import json
import os
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from chatroom.client.frames import CLOSE, PING, PONG, TEXT, FrameReader, ProtocolError, encode_frame

CONNECT_SECONDS, SEND_SECONDS, HEAD_LIMIT = 10.0, 20.0, 65536
ACCEPT_SALT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ConnectionLost(Exception):
    """The connection ended or never came to be; trying again is the answer."""


class Closed(ConnectionLost):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed by the server with {code}{f' ({reason})' if reason else ''}")
        self.code = code


class HandshakeRefused(ConnectionLost):
    def __init__(self, status: int) -> None:
        super().__init__(f"the server answered the handshake with {status}")
        self.status = status


class WebSocket:
    def __init__(self, connected: socket.socket, *, already_read: bytes = b"") -> None:
        self.socket = connected
        self.reader = FrameReader()
        self.reader.feed(already_read)
        self.last_heard = time.monotonic()
        self.is_closing = False

    def send(self, message: dict[str, Any]) -> None:
        self._send_frame(TEXT, json.dumps(message).encode())

    def ping(self) -> None:
        self._send_frame(PING, b"")

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None when no whole one came in time. Pings are answered on the way."""
        until = time.monotonic() + seconds
        while True:
            try:
                found = self.reader.next_message()
                if found is not None:
                    if (message := self._handle(*found)) is not None:
                        return message
                    continue
            except ProtocolError as error:
                self.close(error.close_code)
                raise ConnectionLost(f"the server sent {error}") from None
            if not self._read_more(until - time.monotonic()):
                return None

    def close(self, code: int = 1000, *, seconds: float = 0) -> None:
        """Says goodbye, and waits up to `seconds` for the echo: closing with unread data would throw away what we sent last."""
        try:
            if not self.is_closing:
                self.is_closing = True
                self._send_frame(CLOSE, code.to_bytes(2, "big"), seconds=max(seconds, 0.2))
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                self.receive(left)
        except (OSError, ConnectionLost):
            pass  # it is gone, which is what we want
        self.socket.close()

    def _read_more(self, seconds: float) -> bool:
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return False
        except OSError as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error
        if not data:
            raise ConnectionLost("the connection ended")
        self.last_heard = time.monotonic()
        self.reader.feed(data)
        return True

    def _handle(self, opcode: int, payload: bytes) -> dict[str, Any] | None:
        if opcode == PING:
            self._send_frame(PONG, payload)
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
            self.close(code if len(payload) >= 2 else 1000)
            raise Closed(code, payload[2:].decode("utf-8", "replace"))
        elif opcode != PONG:
            return decode(payload, opcode=opcode)
        return None

    def _send_frame(self, opcode: int, payload: bytes, *, seconds: float = SEND_SECONDS) -> None:
        self.socket.settimeout(seconds)
        try:
            self.socket.sendall(encode_frame(opcode, payload))
        except OSError as error:
            raise ConnectionLost(str(error) or type(error).__name__) from error


def decode(payload: bytes, *, opcode: int) -> dict[str, Any]:
    try:
        message = json.loads(payload.decode()) if opcode == TEXT else None
    except ValueError as error:
        raise ProtocolError(f"text that is no JSON: {error}", close_code=1007) from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("a message without a type", close_code=1003)
    return message


def connect(url: str, *, target: str, token: str, seconds: float = CONNECT_SECONDS) -> WebSocket:
    """`url` is the server's http(s) address, `target` the path of the socket below it."""
    base = urlsplit(url)
    host, is_tls = base.hostname or "", base.scheme == "https"
    try:
        connected = socket.create_connection((host, base.port or (443 if is_tls else 80)), timeout=seconds)
    except OSError as error:
        raise ConnectionLost(str(error)) from error
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if is_tls:
            import ssl

            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
        return shake_hands(connected, host=base.netloc, target=base.path + target, token=token)
    except OSError as error:
        connected.close()
        raise ConnectionLost(str(error) or type(error).__name__) from error
    except BaseException:
        connected.close()
        raise


def shake_hands(connected: socket.socket, *, host: str, target: str, token: str) -> WebSocket:
    key = binascii.b2a_base64(os.urandom(16), newline=False)
    head = (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {key.decode()}\r\nAuthorization: Bearer {token}\r\nUser-Agent: chatroom-client\r\n\r\n"
    )
    connected.sendall(head.encode())
    from hashlib import sha1  # loaded while the server answers

    expected = binascii.b2a_base64(sha1(key + ACCEPT_SALT, usedforsecurity=False).digest(), newline=False).decode()
    answer, already_read = read_head(connected)
    status, headers = parse_head(answer)
    if status != 101:
        raise HandshakeRefused(status)
    if headers.get("sec-websocket-accept") != expected:
        raise ConnectionLost("what answers there does not speak WebSocket")
    return WebSocket(connected, already_read=already_read)


def read_head(connected: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connected.recv(4096)
        if not more or len(data) > HEAD_LIMIT:
            raise ConnectionLost("the connection ended during the handshake")
        data += more
    head, rest = data.split(b"\r\n\r\n", 1)
    return head.decode("latin-1"), rest


def parse_head(head: str) -> tuple[int, dict[str, str]]:
    first, *lines = head.split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise ConnectionLost(f"no HTTP answer: {first[:60]!r}")
    pairs = (line.partition(":") for line in lines)
    return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}
