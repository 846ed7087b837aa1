"""The broker of a started program, made to fail: the embedded Valkey by signals, a Redis that others use too through a proxy."""

import contextlib
import os
import select
import signal
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import redis


class Proxy(threading.Thread):
    """Passes bytes between clients and the real server, until it is frozen: then nothing moves, and connections stay open."""

    def __init__(self, url: str) -> None:
        super().__init__(name="broker-proxy", daemon=True)
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 6379)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        credentials = parts.netloc.rpartition("@")[0]
        address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=f"{credentials}@{address}" if credentials else address))
        self.moving = threading.Event()
        self.moving.set()
        self.ended = False
        self.peers: dict[socket.socket, socket.socket] = {}

    def run(self) -> None:
        while not self.ended:
            self.moving.wait(0.1)
            if not self.moving.is_set():
                continue
            readable, _, _ = select.select([self.listener, *self.peers], [], [], 0.05)
            for ready in readable:
                if not self.moving.is_set():
                    break
                self._accept() if ready is self.listener else self._pass_on(ready)
        for connection in [self.listener, *self.peers]:
            connection.close()

    def _accept(self) -> None:
        client, _address = self.listener.accept()
        server = socket.create_connection(self.target)
        self.peers[client], self.peers[server] = server, client

    def _pass_on(self, source: socket.socket) -> None:
        target = self.peers.get(source)
        if target is None:
            return
        try:
            data = source.recv(65536)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            self.close(source, target)

    def close(self, *connections: socket.socket) -> None:
        for connection in connections:
            self.peers.pop(connection, None)
            with contextlib.suppress(OSError):
                connection.close()

    def drop_all(self) -> None:
        """As if the server had been killed and had come back: every connection breaks."""
        for connection in list(self.peers):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Broker:
    def __init__(self, home: Path, *, proxy: Proxy | None, prefix: str) -> None:
        self.home, self.proxy, self.prefix = home, proxy, prefix

    def _signal(self, number: signal.Signals) -> None:
        os.kill(int((self.home / "run" / "valkey.pid").read_text()), number)

    def freeze(self) -> None:
        """It accepts nothing and answers nothing, and no connection breaks."""
        if self.proxy:
            self.proxy.moving.clear()
        else:
            self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self.proxy:
            self.proxy.moving.set()
        else:
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; `up` starts the embedded one again. A shared one is not ours to kill: all its connections break."""
        if self.proxy:
            self.proxy.drop_all()
        else:
            self._signal(signal.SIGKILL)

    def empty(self) -> int:
        """Removes every key of this program; returns how many there were."""
        url = self.proxy.url if self.proxy else f"unix://{self.home / 'run' / 'valkey.sock'}?db=0"
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            keys = list(client.scan_iter(match=f"{self.prefix}*", count=1000))
            return int(client.delete(*keys)) if keys else 0
