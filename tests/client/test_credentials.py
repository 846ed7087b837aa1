from __future__ import annotations

import json
import stat
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from chatroom.client import credentials
from chatroom.client.credentials import Place, find_place
from chatroom.client.errors import ClientError

LOCAL = "http://127.0.0.1:8123"
NOTHING = Namespace(server=None, token=None)
Home = Callable[[], Path]


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHATROOM_SERVER", "CHATROOM_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CHATROOM_HOME", str(tmp_path / "home"))


@pytest.fixture
def local_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "server.json").write_text(json.dumps({"url": LOCAL, "pid": 1}))
    (home / "owner.token").write_text("owner-token\n")


@pytest.mark.usefixtures("local_server")
def test_on_the_servers_own_host_a_person_needs_no_sign_in() -> None:
    assert find_place(NOTHING) == Place(LOCAL, "owner-token", "owner")


@pytest.mark.usefixtures("local_server")
def test_the_owner_token_is_not_sent_to_another_server() -> None:
    assert find_place(Namespace(server="http://127.0.0.1:9999", token=None)).token == ""


@pytest.mark.usefixtures("local_server")
def test_with_a_token_in_the_environment_the_home_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATROOM_TOKEN", "agent-token")
    monkeypatch.setattr(credentials, "read_local_server", lambda: pytest.fail("looked into the server's home"))
    monkeypatch.setattr(credentials, "read_owner_token", lambda: pytest.fail("read the owner's token"))
    assert find_place(NOTHING) == Place("http://127.0.0.1:8000", "agent-token", "given")
    assert find_place(Namespace(server=LOCAL, token=None)) == Place(LOCAL, "agent-token", "given")


@pytest.mark.usefixtures("local_server")
def test_a_sign_in_comes_before_the_owner_token_and_an_option_before_both() -> None:
    credentials.store_token(LOCAL, token="mine", name="alice")
    assert find_place(NOTHING).token == "mine"
    assert find_place(Namespace(server=None, token="option")) == Place(LOCAL, "option", "given")


def test_the_last_sign_in_is_the_default_and_forgotten_on_sign_out() -> None:
    credentials.store_token("https://one", token="1", name="alice")
    credentials.store_token("https://two", token="2", name="alice")
    assert find_place(NOTHING) == Place("https://two", "2", "file")
    credentials.forget_token("https://two")
    assert find_place(NOTHING) == Place("https://one", "1", "file")
    credentials.forget_token("https://one")
    assert find_place(NOTHING) == Place("http://127.0.0.1:8000", "", "")


def test_only_their_owner_can_read_the_credentials() -> None:
    path = credentials.store_token("https://one", token="1", name="alice")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == ["credentials.json"]


def test_a_damaged_file_is_named() -> None:
    path = credentials.store_token("https://one", token="1", name="alice")
    path.write_text("{")
    with pytest.raises(ClientError, match=r"credentials\.json"):
        find_place(NOTHING)


@pytest.mark.parametrize("url", ["demo", "ftp://host", "http://", "http://host:port", "http://alice@host"])
def test_what_is_no_server_is_refused_as_usage(url: str) -> None:
    with pytest.raises(ClientError) as refused:
        find_place(Namespace(server=url, token="t"))
    assert refused.value.exit_code == 2


def test_addresses_are_compared_in_one_form() -> None:
    assert credentials.normalise("HTTP://Host:8000/chat/") == "http://host:8000/chat"
    assert credentials.normalise("http://[::1]:8000") == "http://[::1]:8000"
