from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.daemon.logs import CHUNK, LogStream, decode
from machines.daemon.process import AgentProcess
from machines.daemon.runs import RunDirectory, RunInfo


@pytest.fixture
def process(tmp_path: Path) -> AgentProcess:
    info = RunInfo(run=41, agent=7, generation=1, room="demo", role="builder", harness="agent")
    return AgentProcess(RunDirectory.create(tmp_path, info, key="abc"), info)


@pytest.fixture
def append(process: AgentProcess) -> Callable[[bytes], None]:
    def add(data: bytes) -> None:
        with (process.directory.path / f"output-{0:015d}.log").open("ab") as file:
            file.write(data)

    return add


@pytest.fixture
def stream(process: AgentProcess) -> LogStream:
    found = LogStream()
    found.watch(process)
    return found


def test_new_output_is_told_once_from_where_it_began(process: AgentProcess, append: Callable[[bytes], None], stream: LogStream) -> None:
    lock = process.directory.take_lock()
    assert stream.collect() == []
    append(b"one\n")
    assert stream.collect() == [{"run": 41, "offset": 0, "end": 4, "skipped": 0, "text": "one\n"}]
    assert stream.collect() == []
    append(b"two\n")
    assert stream.collect() == [{"run": 41, "offset": 4, "end": 8, "skipped": 0, "text": "two\n"}]
    assert lock > 0


def test_a_character_cut_in_two_waits_for_its_other_half(process: AgentProcess, append: Callable[[bytes], None], stream: LogStream) -> None:
    process.directory.take_lock()
    append("grün".encode()[:3])
    assert stream.collect()[0]["text"] == "gr"
    assert stream.collect() == []
    append("grün".encode()[3:])
    assert stream.collect() == [{"run": 41, "offset": 2, "end": 5, "skipped": 0, "text": "ün"}]


def test_somebody_who_prints_too_much_is_shown_from_the_end(append: Callable[[bytes], None], stream: LogStream) -> None:
    append(b"x" * 500_000 + b"the end")
    chunk = stream.collect()[0]
    assert chunk["text"].endswith("the end")
    assert len(chunk["text"]) == CHUNK
    assert chunk["offset"] == chunk["skipped"] == 500_007 - CHUNK


def test_an_ended_run_is_told_to_its_end_then_forgotten(append: Callable[[bytes], None], stream: LogStream) -> None:
    append(b"bye" + b"\xff" + "ü".encode()[:1])
    assert stream.collect()[0]["text"] == "bye\ufffd\ufffd"
    assert stream.collect() == []
    assert stream.watched == {}


@given(st.binary(max_size=50))
def test_every_byte_is_told_exactly_once(data: bytes) -> None:
    text, used = "", 0
    for end in range(len(data) + 1):
        part, taken = decode(data[used:end], is_last=end == len(data))
        text, used = text + part, used + taken
    assert used == len(data)
    assert text == data.decode("utf-8", "replace").replace("\0", "\ufffd")
