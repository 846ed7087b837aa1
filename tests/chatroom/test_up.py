"""The rules of `up` that need no running program."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from chatroom import ending
from chatroom.settings import short_socket_path
from chatroom.up.console import CannotStart
from chatroom.up.home import LOG_LIMIT, Home
from chatroom.up.limits import allow_many_sockets
from chatroom.up.logs import LogTail, last_lines
from chatroom.up.part import Backoff, Part, describe_exit
from chatroom.up.port import address_of, check_port, names_of
from chatroom.up.prepare import without_password
from chatroom.up.valkey import prepare_folder


def test_backoff_doubles_up_to_half_a_minute() -> None:
    backoff = Backoff()
    assert [backoff.after(lived=1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_backoff_begins_anew_after_a_minute_of_life() -> None:
    backoff = Backoff(failures=6)
    assert backoff.after(lived=60) == 1


@pytest.mark.parametrize(("returncode", "words"), [(0, "exit 0"), (3, "exit 3"), (-9, "SIGKILL"), (-99, "signal 99")])
def test_an_end_is_described_by_exit_code_or_signal(returncode: int, words: str) -> None:
    assert describe_exit(returncode) == words


def test_a_port_in_use_is_named_with_its_holder_and_a_way_out() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"port {port} on 127\.0\.0\.1 is in use by .*PID {os.getpid()}.*--port {port + 1}"):
            check_port("127.0.0.1", port)


def test_a_free_port_is_accepted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_port("127.0.0.1", port)
    with socket.socket() as user:
        user.bind(("127.0.0.1", port))
        assert user.getsockname()[1] == port


def test_a_host_of_another_machine_is_refused_with_words() -> None:
    with pytest.raises(CannotStart, match=r"port 8000 on 192\.0\.2\.1"):
        check_port("192.0.2.1", 8000)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_the_address_is_one_this_machine_can_reach(host: str, address: str) -> None:
    assert address_of(host, 8000) == address


def test_listening_everywhere_allows_every_name_of_this_machine() -> None:
    assert {"localhost", "127.0.0.1", socket.gethostname().lower()} <= set(names_of("0.0.0.0"))


def test_listening_on_one_address_allows_that_address() -> None:
    assert names_of("10.1.2.3") == ["localhost", "127.0.0.1", "[::1]", "10.1.2.3"]


def test_a_second_holder_of_a_home_is_refused_with_the_first_ones_pid(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    with home.lock(), pytest.raises(CannotStart, match=f"PID {os.getpid()}"):
        Home(home.path).lock()
    with home.lock() as again:
        assert not again.closed


def test_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    Home(tmp_path / "a" / "home").create()
    assert (tmp_path / "a" / "home").stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_a_file_is_refused_with_words(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(CannotStart, match=r"CHATROOM_HOME=.*File exists: expected a directory"):
        Home(tmp_path / "home").create()


def test_a_large_log_is_set_aside_at_start(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    home.log_file("web").write_bytes(b"x" * (LOG_LIMIT + 1))
    with home.open_log("web") as log:
        log.write(b"new\n")
    assert home.log_file("web").read_text() == "new\n"
    assert (tmp_path / "log" / "web.log.1").stat().st_size == LOG_LIMIT + 1


def test_a_log_that_grows_large_is_set_aside_while_its_part_writes_on(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    with home.open_log("web") as log:
        log.write(b"x" * (LOG_LIMIT + 1))
        log.flush()
        home.set_log_aside("web")
        log.write(b"new\n")
    assert home.log_file("web").read_text() == "new\n"
    assert (tmp_path / "log" / "web.log.1").stat().st_size == LOG_LIMIT + 1


def test_only_important_new_lines_are_repeated_and_none_twice(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text("2026-11-20 14:02:40,123 ERROR old before the start\n")
    tail = LogTail(path)
    with path.open("a") as log:
        log.write("2026-11-20 14:02:41,123 INFO chatroom fine\n2026-11-20 14:02:42,123 ERROR chatroom broken\nTraceback\n")
        log.write("2026-11-20 14:02:43,123 ERROR chatroom broken\n2026-11-20 14:02:44,123 WARNING chatroom half a li")
    assert tail.new_lines() == ["ERROR chatroom broken"]
    with path.open("a") as log:
        log.write("ne\n")
    assert tail.new_lines() == ["WARNING chatroom half a line"]


def test_a_flood_of_important_lines_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    tail = LogTail(path)
    path.write_text("".join(f"2026-11-20 14:02:41,123 ERROR chatroom number {number}\n" for number in range(100)))
    lines = tail.new_lines()
    assert len(lines) == 12
    assert str(path) in lines[-1]


def test_refused_requests_do_not_crowd_out_what_matters(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    tail = LogTail(path)
    refused = [f"2026-11-20 14:02:41,123 WARNING django.request Not Found: /{number}\n" for number in range(100)]
    path.write_text("".join([*refused, "2026-11-20 14:02:42,123 ERROR django.request Internal Server Error: /\n"]))
    assert tail.new_lines() == ["ERROR django.request Internal Server Error: /"]


def test_a_worker_says_nothing_of_what_its_library_would_like_us_to_change() -> None:
    worker = """
        import warnings, django
        django.setup()
        from celery.exceptions import CPendingDeprecationWarning
        from chatroom.celery import app
        from chatroom.up.jobs import make_worker, prepare
        prepare(app)
        make_worker(app, queue="default", threads=1)
        warnings.warn("cancel jobs when the broker is lost", CPendingDeprecationWarning)
    """
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "chatroom.settings"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(worker)], capture_output=True, text=True, env=environment, check=True)
    assert "cancel jobs" not in done.stderr


def test_the_last_lines_leave_out_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "web.log"
    path.write_text("one\n\ntwo\n\n")
    assert last_lines(path, count=5) == ["one", "two"]


def test_a_password_is_never_shown() -> None:
    assert without_password("redis://user:secret@redis.example:6379/1") == "redis://redis.example:6379/1"


def test_a_socket_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(CannotStart, match="belongs to user"):
        prepare_folder(tmp_path / "socket")


def test_a_bound_program_ends_with_its_parent(tmp_path: Path) -> None:
    part = Part(name="sleeper", command=[sys.executable, "-c", "import time; time.sleep(60)"])
    bind = part.bound_command()[:4]
    code = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen({bind!r} + [str(os.getpid())] + {part.command!r})\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "sys.stdout.write('up'); sys.stdout.flush(); child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.read(2) == b"up"
        child = int((tmp_path / "pid").read_text())
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    until = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < until, f"process {child} outlived its parent"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_bound_program_does_not_start_without_its_parent() -> None:
    bind = Part(name="x", command=["/bin/true"]).bound_command()[:4]
    ended = subprocess.run([*bind, "1", "/bin/true"], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "has ended already" in ended.stderr


def test_ending_tells_everybody_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "ending", False)
    monkeypatch.setattr(ending, "_callbacks", [])
    told: list[str] = []
    ending.when_ending(lambda: told.append("first"))
    forget = ending.when_ending(lambda: told.append("forgotten"))
    forget()
    ending.begin()
    ending.begin()
    ending.when_ending(lambda: told.append("late"))
    assert told == ["first", "late"]


def test_a_system_that_refuses_more_files_is_not_quarrelled_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_many_sockets()


@pytest.mark.parametrize("depth", [1, 60, 90, 150])
def test_the_embedded_valkey_has_a_short_socket_however_deep_its_home_and_the_temporary_folder(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'t' * depth}")
    homes = [Path(f"/home/{letter * depth}/run/valkey.sock") for letter in "äb"]
    sockets = [short_socket_path(home) for home in homes]
    assert len(set(sockets)) == 2
    assert all(len(os.fsencode(socket)) <= 107 for socket in sockets)
    assert sockets[1] == homes[1] or depth > 60
