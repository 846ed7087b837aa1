"""The first start: a person's token is traded for the machine's own, however often the answer is lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from chatroom.client.credentials import Place
from machines.daemon.daemon import Options
from machines.daemon.main import register
from machines.daemon.state import Home
from tests.client.fake_server import FakeServer

LOST = {"error": {"code": "unavailable", "message": "the answer was lost"}}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def test_every_try_to_register_says_the_same_registration(server: FakeServer, tmp_path: Path) -> None:
    answer = {"id": 3, "name": "laptop-7", "token": "secret"}
    server.routes["POST machines"] = [(503, LOST, {"Retry-After": "0"}), (201, answer)]
    options = Options(server=server.url, name="laptop-7", version="0", allowed=[], harnesses=tmp_path / "harnesses.toml")
    home = Home(tmp_path / "home", say=lambda text: None)
    home.take()
    credentials = register(options, home, Place(server.url, "of-a-person", "given"))
    first, second = server.asked("POST machines")
    assert first["registration"] == second["registration"] != ""
    assert home.credentials(server=server.url) == credentials
    home.release()
