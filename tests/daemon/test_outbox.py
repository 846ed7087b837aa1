import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from machines.daemon.outbox import Outbox

WRITER = """
import itertools, sys
from pathlib import Path
from machines.daemon.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), say=print)
for n in itertools.count():
    outbox.put(f"key {n}", {"n": n})
    print(n, flush=True)
"""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outbox(tmp_path: Path, said: list[str]) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "outbox.sqlite3", say=said.append)
    yield box
    box.close()


def again(outbox: Outbox, said: list[str]) -> Outbox:
    outbox.close()
    return Outbox(outbox.path, say=said.append)


def keys(outbox: Outbox) -> list[str]:
    return [report.key for report in outbox.waiting(limit=10**6)]


def test_reports_come_back_in_order_after_a_restart(outbox: Outbox, said: list[str]) -> None:
    for name in "cab":
        outbox.put(name, {"name": name})
    later = again(outbox, said)
    assert keys(later) == ["c", "a", "b"]
    assert later.waiting()[0].body["name"] == "c"
    later.close()


def test_an_acknowledged_report_is_gone_for_good(outbox: Outbox, said: list[str]) -> None:
    outbox.put("a", {})
    outbox.put("b", {})
    outbox.acknowledge("a")
    later = again(outbox, said)
    assert keys(later) == ["b"]
    assert later.size() == 1
    later.close()


def test_the_first_report_of_a_key_stands(outbox: Outbox) -> None:
    assert outbox.put("a", {"n": 1}) is True
    assert outbox.put("a", {"n": 2}) is False
    assert [report.body["n"] for report in outbox.waiting()] == [1]


def test_places_are_never_used_again(outbox: Outbox, said: list[str]) -> None:
    outbox.put("a", {})
    first = outbox.waiting()[0].seq
    outbox.acknowledge("a")
    later = again(outbox, said)
    later.put("b", {})
    assert later.waiting()[0].seq > first
    assert keys(later) == ["b"]
    later.close()


def test_a_page_starts_after_the_given_place(outbox: Outbox) -> None:
    for n in range(5):
        outbox.put(str(n), {})
    second = outbox.waiting(limit=2)[-1].seq
    assert [report.key for report in outbox.waiting(after=second, limit=2)] == ["2", "3"]


@pytest.mark.processes
def test_a_killed_writer_leaves_every_report_it_had_stored(tmp_path: Path, said: list[str]) -> None:
    path = tmp_path / "outbox.sqlite3"
    for wanted in (1, 7, 40):
        path.unlink(missing_ok=True)
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        ) as writer:
            assert writer.stdout is not None
            while int(writer.stdout.readline()) < wanted:
                pass
            os.kill(writer.pid, signal.SIGKILL)
            stored = [wanted, *(int(line) for line in writer.stdout if line.strip())][-1]
        outbox = Outbox(path, say=said.append)
        found = [report.body["n"] for report in outbox.waiting(limit=10**6)]
        assert found == list(range(len(found)))
        assert len(found) > stored
        outbox.close()
    assert said == []


@pytest.mark.scenario(43)
@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, said: list[str], damage: bytes) -> None:
    path = tmp_path / "outbox.sqlite3"
    path.write_bytes(damage)
    outbox = Outbox(path, say=said.append)
    outbox.put("a", {})
    assert keys(outbox) == ["a"]
    outbox.close()
    aside = list(tmp_path.glob("outbox.sqlite3.damaged-*"))
    assert len(aside) == len(said) == (1 if damage else 0)
    assert all("is damaged" in line for line in said)
    assert [file.read_bytes() for file in aside] == [damage for _ in aside]


def test_a_torn_write_is_undone(tmp_path: Path, said: list[str]) -> None:
    outbox = Outbox(tmp_path / "outbox.sqlite3", say=said.append)
    for n in range(50):
        outbox.put(str(n), {"text": "x" * 200})
    copy = tmp_path / "torn"
    copy.mkdir()
    for file in tmp_path.glob("outbox.sqlite3*"):
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[: -len(content) // 3] if file.name.endswith("-wal") else content)
    outbox.close()
    torn = Outbox(copy / "outbox.sqlite3", say=said.append)
    found = keys(torn)
    assert 0 < len(found) < 50
    assert found == [str(n) for n in range(len(found))]
    torn.close()


class Full(Outbox):
    full = False

    def insert(self, key: str, body: dict[str, Any]) -> bool:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        return super().insert(key, body)


def test_a_full_disk_is_said_once_and_loses_nothing(tmp_path: Path, said: list[str]) -> None:
    outbox = Full(tmp_path / "outbox.sqlite3", say=said.append)
    outbox.put("a", {})
    outbox.full = True
    outbox.put("b", {})
    outbox.put("c", {})
    assert [report.key for report in outbox.kept_in_memory()] == ["b", "c"]
    assert len(said) == 1
    assert "database or disk is full" in said[0]
    outbox.full = False
    outbox.put("d", {})
    assert keys(outbox) == ["a", "b", "c", "d"]
    assert outbox.kept_in_memory() == []
    assert len(said) == 2
    outbox.close()
