import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from machines.daemon.runs import ExitRecord, LogReader, Note, RunDirectory, RunInfo, remove_old, unsettled
from machines.daemon.shim import boot_id
from machines.daemon.state import process_start

INFO = RunInfo(run=41, agent=7, generation=1, room="demo", role="builder", harness="agent")


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, INFO, key="abc")


def write_pids(directory: RunDirectory, *, boot: str | None) -> None:
    me = {"pid": os.getpid(), "start": process_start(os.getpid())}
    (directory.path / "pid.json").write_text(json.dumps({"shim": me, "program": me, "boot": boot}))


def test_a_run_is_known_again_by_its_directory(directory: RunDirectory, tmp_path: Path) -> None:
    assert [found.info(say=print) for found in unsettled(tmp_path)] == [INFO]
    assert json.loads((directory.path / "run.json").read_text()) == asdict(INFO)


def test_two_servers_with_the_same_run_numbers_do_not_meet(directory: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory.create(tmp_path, INFO, key="def")
    assert other.path != directory.path
    with pytest.raises(FileExistsError):
        RunDirectory.create(tmp_path, INFO, key="abc")


def test_held_means_alive(directory: RunDirectory) -> None:
    assert not directory.is_held()
    lock = directory.take_lock()
    assert directory.is_held()
    assert directory.exit() is None
    with pytest.raises(BlockingIOError):
        directory.take_lock()
    os.close(lock)
    assert not directory.is_held()


def test_an_end_nobody_saw_is_told_from_one_with_the_machine(directory: RunDirectory) -> None:
    found = directory.exit()
    assert found is not None
    assert (found.lost, found.never_started, found.machine_lost) == (True, True, False)
    write_pids(directory, boot=boot_id())
    found = directory.exit()
    assert found is not None
    assert (found.never_started, found.machine_lost) == (False, False)
    assert found.describe() == "ended together with its shim, which was killed"
    write_pids(directory, boot="another boot")
    found = directory.exit()
    assert found is not None
    assert found.machine_lost
    assert found.describe() == "ended with its machine"


@pytest.mark.scenario(42)
def test_pids_of_an_earlier_boot_are_nobodys(directory: RunDirectory) -> None:
    write_pids(directory, boot=boot_id())
    found = directory.identity("program")
    assert found is not None
    assert found.pid == os.getpid()
    write_pids(directory, boot="another boot")
    assert directory.identity("program") is None


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (ExitRecord(3, None, None, []), "ended with exit code 3"),
        (ExitRecord(None, 9, None, []), "ended by signal 9"),
        (ExitRecord(None, None, "/x: No such file or directory", []), "could not be started: /x: No such file or directory"),
        (ExitRecord(None, None, None, [], lost=True, never_started=True), "was never started"),
    ],
)
def test_an_end_in_words(record: ExitRecord, words: str) -> None:
    assert record.describe() == words


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ('{"failure": "quota", "retry_after": 60, "message": "until noon"}', Note("quota", 60.0, "until noon")),
        ("{}", Note()),
        ("[]", Note()),
        ("nonsense", Note()),
        ('{"retry_after": -1}', Note()),
        ('{"retry_after": "soon"}', Note()),
        ('{"retry_after": 1e300, "message": 3}', Note(None, None, "3")),
        ('{"message": "' + "x" * 100000 + '"}', Note()),
    ],
)
def test_a_programs_note_is_taken_as_far_as_it_makes_sense(directory: RunDirectory, content: str, note: Note) -> None:
    (directory.path / "exit-note.json").write_text(content)
    assert directory.note() == note


def test_no_note_says_nothing(directory: RunDirectory) -> None:
    assert directory.note() == Note()


def test_old_settled_runs_are_removed_and_no_others(directory: RunDirectory, tmp_path: Path) -> None:
    old = RunDirectory.create(tmp_path, INFO, key="old")
    young = RunDirectory.create(tmp_path, INFO, key="young")
    for one in (old, young):
        one.settle()
    os.utime(old.path / "settled", (0, 0))
    assert remove_old(tmp_path, older_than=3600) == 1
    assert not old.path.exists()
    assert young.path.exists()
    assert directory.path.exists()


def test_the_reason_of_a_stop_survives_the_daemon(directory: RunDirectory) -> None:
    assert directory.asked() is None
    directory.ask_to_stop(asked="stop", grace=5)
    assert RunDirectory(directory.path).asked() == "stop"


@pytest.fixture
def log(tmp_path: Path) -> LogReader:
    """Bytes 0–9 and 30–39 are kept; those between were dropped by the limit."""
    (tmp_path / f"output-{0:015d}.log").write_bytes(b"0123456789")
    (tmp_path / f"output-{30:015d}.log").write_bytes(b"\nabc\ndefg\n")
    return LogReader(tmp_path)


@pytest.mark.parametrize(
    ("offset", "limit", "expected"),
    [(0, 100, (0, b"0123456789")), (4, 3, (4, b"456")), (10, 100, (30, b"\nabc\ndefg\n")), (35, 2, (35, b"de")), (40, 9, (40, b""))],
)
def test_a_log_is_read_over_its_gaps(log: LogReader, offset: int, limit: int, expected: tuple[int, bytes]) -> None:
    assert log.read(offset, limit=limit) == expected


def test_the_last_lines_are_those_at_the_end(log: LogReader, tmp_path: Path) -> None:
    assert log.end() == 40
    assert log.last_lines(2) == ["abc", "defg"]
    assert LogReader(tmp_path / "nothing").last_lines() == []
