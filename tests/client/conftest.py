from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.fake_server import FakeServer

PROJECT = Path(__file__).resolve().parent.parent.parent
LIMIT = 30


class Started(subprocess.Popen[str]):
    """A command in a process of its own, its error lines readable one by one."""

    def line(self) -> str:
        assert self.stderr is not None
        return self.stderr.readline()

    def wait_until_waiting(self) -> None:
        while line := self.line():
            if "waiting for work" in line:
                return
        raise AssertionError(f"it ended with {self.wait(LIMIT)} before it waited")

    def finish(self) -> tuple[int, str, str]:
        out, err = self.communicate(timeout=LIMIT)
        return self.returncode, out, err


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()
    assert not fake.errors, fake.errors


@pytest.fixture
def surroundings(tmp_path: Path, server: FakeServer) -> dict[str, str]:
    """The environment of a signed-in agent, nothing of the tester's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CHATROOM_", "XDG_"))}
    return {
        **kept,
        "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "CHATROOM_HOME": str(tmp_path / "nothing"),
        "CHATROOM_SERVER": server.url, "CHATROOM_TOKEN": "t0ken", "CHATROOM_RECONNECT_WITHIN": "0.1", "CHATROOM_PATIENCE": "5",
        "TZ": "UTC",
    }  # fmt: skip


@pytest.fixture
def start(surroundings: dict[str, str]) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def begin(*words: str, env: dict[str, str] | None = None, **options: Any) -> Started:
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
        process = Started(
            [sys.executable, "-m", "chatroom.client", *words], cwd=PROJECT, env={**surroundings, **(env or {})}, text=True, **options
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def call(start: Callable[..., Started]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str, input_text: str | None = None, **options: Any) -> tuple[int, str, str]:
        if input_text is not None:
            options["stdin"] = subprocess.PIPE
        process = start(*words, **options)
        out, err = process.communicate(input_text, timeout=LIMIT)
        return process.returncode, out, err

    return run
