import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from machines.daemon.errors import AnotherDaemon
from machines.daemon.state import Credentials, Home, Identity, process_start, read_or_set_aside, this_process
from tests.daemon.processes import eventually

HOLDER = """
import sys, time
from pathlib import Path
from machines.daemon.state import Home
Home(Path(sys.argv[1]), say=print).take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def said() -> list[str]:
    return []


def make_home(tmp_path: Path, said: list[str]) -> Home:
    return Home(tmp_path / "home", say=said.append)


@pytest.mark.processes
@pytest.mark.scenario(41)
def test_the_second_daemon_is_told_who_holds_the_home(tmp_path: Path, said: list[str]) -> None:
    home = make_home(tmp_path, said)
    command = [sys.executable, "-c", HOLDER, str(home.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"taken\n"
        assert home.is_held()
        with pytest.raises(AnotherDaemon, match=f"held by the daemon with PID {holder.pid}"):
            home.take()
        os.kill(holder.pid, signal.SIGKILL)
    assert not home.is_held()
    home.take()
    home.release()


def test_the_home_is_for_its_owner_only(tmp_path: Path, said: list[str]) -> None:
    home = make_home(tmp_path, said)
    home.take()
    home.save_credentials(Credentials(server="http://one", id=3, name="laptop-7", token="secret"))
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((home.path / "machine.json").stat().st_mode) == 0o600
    home.release()


def test_one_id_registers_until_the_token_is_stored(tmp_path: Path, said: list[str]) -> None:
    home = make_home(tmp_path, said)
    home.take()
    known = home.registration()
    assert make_home(tmp_path, said).registration() == known
    assert stat.S_IMODE((home.path / "registration.json").stat().st_mode) == 0o600
    home.save_credentials(Credentials(server="http://one", id=3, name="laptop-7", token="secret"))
    assert home.registration() != known
    home.release()


def test_credentials_are_those_of_their_server(tmp_path: Path, said: list[str]) -> None:
    home = make_home(tmp_path, said)
    home.take()
    kept = Credentials(server="http://one", id=3, name="laptop-7", token="secret")
    home.save_credentials(kept)
    assert home.credentials(server="http://one") == kept
    assert home.credentials(server="http://other") is None
    home.forget_credentials()
    assert home.credentials(server="http://one") is None
    assert said == []
    home.release()


@pytest.mark.scenario(43)
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"server": "http://one"}', "\0\0\0"])
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, said: list[str], damage: str) -> None:
    home = make_home(tmp_path, said)
    home.take()
    (home.path / "machine.json").write_text(damage)
    assert home.credentials(server="http://one") is None
    assert len(said) == 1
    assert "machine.json is damaged" in said[0]
    assert [path.read_text() for path in home.path.glob("machine.json.damaged-*")] == [damage]
    home.release()


def test_a_missing_file_is_nothing_to_speak_of(tmp_path: Path, said: list[str]) -> None:
    assert read_or_set_aside(tmp_path / "nothing.json", say=said.append) is None
    assert said == []


def test_every_daemon_process_has_an_instance_of_its_own(tmp_path: Path, said: list[str]) -> None:
    assert make_home(tmp_path, said).instance != make_home(tmp_path, said).instance


@pytest.mark.scenario(42)
def test_a_reused_pid_is_left_alone() -> None:
    with subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        start = process_start(stranger.pid)
        assert start is not None
        earlier = Identity(stranger.pid, start - 1)
        assert not earlier.is_alive()
        assert earlier.signal(signal.SIGKILL) is False
        assert stranger.poll() is None
        assert Identity(stranger.pid, start).signal(signal.SIGKILL) is True
        assert stranger.wait(10) == -signal.SIGKILL


def test_a_stopped_process_is_seen() -> None:
    with subprocess.Popen(["/bin/sleep", "600"]) as child:
        identity = Identity(child.pid, process_start(child.pid) or 0)
        assert not identity.is_stopped()
        child.send_signal(signal.SIGSTOP)
        assert eventually(identity.is_stopped)
        child.send_signal(signal.SIGCONT)
        assert eventually(lambda: not identity.is_stopped())
        child.kill()


def test_an_ended_process_nobody_has_collected_is_not_alive() -> None:
    child = subprocess.Popen(["/bin/true"])
    identity = Identity(child.pid, process_start(child.pid) or 0)
    assert eventually(lambda: not identity.is_alive())
    child.wait()


def test_the_status_names_the_process(tmp_path: Path, said: list[str]) -> None:
    home = make_home(tmp_path, said)
    home.take()
    home.write_status({"connected": True})
    assert json.loads((home.path / "status.json").read_text())["connected"] is True
    assert home.holder() == this_process()
    home.release()
