"""A server small enough to misbehave on command: HTTP answers by route, and a script per connection on `/ws/agent/`.

Its WebSocket side is the `websockets` package, so that our own client is tested against somebody else's reading of RFC 6455."""

from __future__ import annotations

import json
import queue
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.utils import accept_key

WELCOME = {
    "type": "welcome", "protocol": 1, "room": {"id": 1, "slug": "demo", "name": "Demo"}, "role": "builder", "status": "ready",
    "lease_seconds": 90, "renew_seconds": 30, "resumed": False,
}  # fmt: skip
OFFER = {
    "type": "offer", "claim": "c_9f", "attempt": 1, "task": 12, "role": "builder", "text": "Mend the test", "from": "alice", "context": [],
}  # fmt: skip


class Gone(Exception):
    """The client closed the connection; `code` of its close frame, None without one."""

    def __init__(self, code: int | None) -> None:
        super().__init__(code)
        self.code = code


class Peer:
    """The server's end of one WebSocket."""

    def __init__(self, connected: socket.socket, headers: dict[str, str]) -> None:
        self.socket, self.headers = connected, headers
        self.protocol = Protocol(Side.SERVER, state=State.OPEN, max_size=2**20)
        self.socket.settimeout(10)
        self.frames: list[Frame] = []
        self.pings = 0
        self.answers_pings = True

    def send(self, message: dict[str, Any]) -> None:
        self.protocol.send_text(json.dumps(message).encode())
        self.flush()

    def flush(self) -> None:
        if self.answers_pings:
            for data in self.protocol.data_to_send():
                if data:
                    self.socket.sendall(data)

    def receive(self) -> dict[str, Any]:
        while True:
            while not self.frames:
                self.frames += self._arrived()
            frame = self.frames.pop(0)
            if frame.opcode is Opcode.TEXT:
                return dict(json.loads(bytes(frame.data)))
            if frame.opcode is Opcode.CLOSE:
                raise Gone(int.from_bytes(frame.data[:2], "big"))
            self.pings += frame.opcode is Opcode.PING

    def _arrived(self) -> list[Frame]:
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise Gone(None)
        self.protocol.receive_data(data)
        if self.protocol.parser_exc:
            raise self.protocol.parser_exc
        self.flush()
        return [event for event in self.protocol.events_received() if isinstance(event, Frame)]

    def close(self, code: int) -> None:
        self.protocol.send_close(code)
        self.flush()

    def expect(self, kind: str) -> dict[str, Any]:
        message = self.receive()
        assert message["type"] == kind, f"expected {kind}, got {message}"
        return message

    def welcome(self, **changes: Any) -> dict[str, Any]:
        hello = self.expect("hello")
        self.send({**WELCOME, **changes})
        return hello

    def hand_over(self, **changes: Any) -> None:
        """An offer, received and confirmed."""
        offer = {**OFFER, **changes}
        self.send(offer)
        assert self.expect("received")["claim"] == offer["claim"]
        self.send({"type": "confirmed", "claim": offer["claim"]})


Script = Callable[[Peer], None]
Answer = tuple[int, dict[str, Any] | None] | tuple[int, dict[str, Any] | None, dict[str, str]]


class FakeServer:
    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.scripts: queue.Queue[Script] = queue.Queue()
        self.routes: dict[str, Callable[[dict[str, Any]], Answer] | list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.errors: list[BaseException] = []
        self.done: queue.Queue[None] = queue.Queue()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.headers.get("Upgrade"):
                    fake.serve_socket(self)
                else:
                    fake.serve_call(self)

            def do_POST(self) -> None:
                fake.serve_call(self)

            def do_PUT(self) -> None:
                fake.serve_call(self)

            def log_message(self, *_args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        if tls:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
            self.url = f"https://localhost:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def next_connections(self, *scripts: Script) -> None:
        for script in scripts:
            self.scripts.put(script)

    def asked(self, route: str) -> list[dict[str, Any]]:
        return [body for name, _, body in self.requests if name == route]

    def serve_socket(self, handler: BaseHTTPRequestHandler) -> None:
        handler.close_connection = True
        script = self.scripts.get_nowait()
        handler.connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
            + accept_key(handler.headers["Sec-WebSocket-Key"]).encode() + b"\r\n\r\n"
        )  # fmt: skip
        try:
            script(Peer(handler.connection, dict(handler.headers)))
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.done.put(None)

    def serve_call(self, handler: BaseHTTPRequestHandler) -> None:
        size = int(handler.headers.get("Content-Length") or 0)
        body = json.loads(handler.rfile.read(size) or b"{}")
        route = f"{handler.command} {handler.path.split('?')[0].removeprefix('/api/v1/')}"
        self.requests.append((route, dict(handler.headers), {**body, "?": handler.path.partition("?")[2]}))
        answers = self.routes.get(route) or [(404, {"error": {"code": "not_found", "message": f"no {route} here"}})]
        if callable(answers):
            answers = [answers(body)]
        # The last answer of a list stands for all later calls.
        status, content, *headers = answers.pop(0) if len(answers) > 1 else answers[0]
        data = b"" if content is None else json.dumps(content).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in (headers[0] if headers else {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
