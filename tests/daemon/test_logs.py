import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from machines.daemon.logs import BEHIND, CHUNK, HELD_BACK, LogStream, decode, in_messages
from machines.daemon.process import AgentProcess, adopt
from machines.daemon.runs import RunDirectory, RunInfo
from machines.untrusted import clean_text

# Colours, a title, a link, a device's answer, an index; broken ones, and what is none.
PIECES = [
    b"\x1b[1;31m",
    b"\x1b]0;title\x07",
    b"\x1b]8;;http://x\x1b\\",
    b"\x1bP1$r\x1b\\",
    b"\x1bM",
    b"\x1b(B",
    b"\x1b]0;t",
    b"\x1b[3",
    b"\x1b",
    b"a\n",
]


@pytest.fixture
def process(tmp_path: Path) -> AgentProcess:
    info = RunInfo(run=41, agent=7, generation=1, room="demo", role="builder", harness="agent")
    return AgentProcess(RunDirectory.create(tmp_path, info, key="abc"), info)


@pytest.fixture
def append(process: AgentProcess) -> Callable[..., None]:
    def add(data: bytes, *, segment: int = 0) -> None:
        with (process.directory.path / f"output-{segment:015d}.log").open("ab") as file:
            file.write(data)

    return add


@pytest.fixture
def stream(process: AgentProcess) -> LogStream:
    found = LogStream()
    found.watch(process)
    return found


def test_new_output_is_told_once_from_where_it_began(process: AgentProcess, append: Callable[..., None], stream: LogStream) -> None:
    lock = process.directory.take_lock()
    assert stream.collect() == []
    append(b"one\n")
    assert stream.collect() == [{"run": 41, "offset": 0, "end": 4, "skipped": 0, "text": "one\n"}]
    assert stream.collect() == []
    append(b"two\n")
    assert stream.collect() == [{"run": 41, "offset": 4, "end": 8, "skipped": 0, "text": "two\n"}]
    assert lock > 0


def test_a_character_cut_in_two_waits_for_its_other_half(process: AgentProcess, append: Callable[..., None], stream: LogStream) -> None:
    process.directory.take_lock()
    append("grün".encode()[:3])
    assert stream.collect()[0]["text"] == "gr"
    assert stream.collect() == []
    append("grün".encode()[3:])
    assert stream.collect() == [{"run": 41, "offset": 2, "end": 5, "skipped": 0, "text": "ün"}]


def test_a_control_sequence_cut_in_two_waits_for_its_other_half(
    process: AgentProcess, append: Callable[..., None], stream: LogStream
) -> None:
    process.directory.take_lock()
    append(b"all \x1b[3")
    assert stream.collect() == [{"run": 41, "offset": 0, "end": 4, "skipped": 0, "text": "all "}]
    assert stream.collect() == []
    append(b"2mgreen")
    assert stream.collect() == [{"run": 41, "offset": 4, "end": 14, "skipped": 0, "text": "\x1b[32mgreen"}]


def test_a_control_sequence_that_does_not_end_is_not_waited_for_without_end(
    process: AgentProcess, append: Callable[..., None], stream: LogStream
) -> None:
    process.directory.take_lock()
    append(b"\x1b]0;" + b"x" * (HELD_BACK - 4))
    assert stream.collect() == []
    append(b"x")
    assert stream.collect()[0]["end"] == HELD_BACK + 1


def test_half_a_control_sequence_is_told_when_its_program_has_ended(append: Callable[..., None], stream: LogStream) -> None:
    append(b"bye\x1b[3")
    assert stream.collect()[0]["text"] == "bye\x1b[3"


def test_what_the_border_of_two_segments_cuts_in_two_is_told_whole(
    process: AgentProcess, append: Callable[..., None], stream: LogStream
) -> None:
    process.directory.take_lock()
    append(b"gr" + "ü".encode()[:1])
    assert stream.collect()[0]["text"] == "gr"
    append("ü".encode()[1:] + b"n\x1b[3", segment=3)
    append(b"2m!", segment=8)
    assert stream.collect()[0]["text"] == "ün\x1b[32m!"


def test_what_the_limit_dropped_is_not_waited_for(process: AgentProcess, append: Callable[..., None], stream: LogStream) -> None:
    process.directory.take_lock()
    append(b"one\x1b[3")
    assert stream.collect()[0]["text"] == "one"
    append(b"two", segment=1000)
    assert stream.collect() == [{"run": 41, "offset": 3, "end": 6, "skipped": 0, "text": "\x1b[3"}]
    assert stream.collect() == [{"run": 41, "offset": 1000, "end": 1003, "skipped": 994, "text": "two"}]


def test_a_returning_daemon_begins_with_a_line_and_goes_on_where_the_last_one_was(
    process: AgentProcess, append: Callable[..., None], stream: LogStream
) -> None:
    process.directory.take_lock()
    append("".join(f"grün {number}\n" for number in range(600)).encode() + b"\x1b[3")
    before = stream.collect()[0]
    append(b"2mgreen\n")
    again = LogStream()
    again.watch(adopt(process.directory, process.info))
    after = again.collect()[0]
    assert before["end"] - 4096 <= after["offset"] <= before["end"]
    assert after["text"].startswith("grün ")
    assert after["text"].encode()[before["end"] - after["offset"] :] == b"\x1b[32mgreen\n"


def test_what_is_left_out_ends_with_a_line(append: Callable[..., None], stream: LogStream) -> None:
    append(b"\x1b[31mgr\xc3\xbcn\x1b[0m\n" * BEHIND)
    chunk = stream.collect()[0]
    assert chunk["text"].startswith("\x1b[31mgrün\x1b[0m\n")
    assert chunk["offset"] == chunk["skipped"] > 0


def test_somebody_who_prints_too_much_is_shown_from_the_end(append: Callable[..., None], stream: LogStream) -> None:
    append(b"x" * 500_000 + b"the end")
    chunk = stream.collect()[0]
    assert chunk["text"].endswith("the end")
    assert len(chunk["text"]) == CHUNK
    assert chunk["offset"] == chunk["skipped"] == 500_007 - CHUNK


def test_an_ended_run_is_told_to_its_end_then_forgotten(append: Callable[..., None], stream: LogStream) -> None:
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


@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=5), max_size=12).map(b"".join), st.sets(st.integers(0, 60)))
@example(b"\x1b]0;t\xc2\x1b[1m", {8})  # half a character, in a title that the next sequence ends
def test_wherever_output_is_cut_nothing_of_a_control_sequence_is_seen(data: bytes, cuts: set[int]) -> None:
    text, used = "", 0
    for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
        part, taken = decode(data[used:end], is_last=end == len(data))
        text, used = text + clean_text(part), used + taken
    assert used == len(data)
    assert text == clean_text(decode(data, is_last=True)[0])


def test_a_hundred_noisy_agents_fit_into_messages_that_the_server_takes(tmp_path: Path) -> None:
    """It ends the connection of whoever sends more than 1 MiB at once, and each byte that is no text becomes six."""
    stream = LogStream()
    for run in range(100):
        info = RunInfo(run=run, agent=run, generation=1, room="demo", role="builder", harness="agent")
        process = AgentProcess(RunDirectory.create(tmp_path, info, key="abc"), info)
        (process.directory.path / "output-000000000000000.log").write_bytes(b"\xff" * CHUNK)
        stream.watch(process)
    messages = in_messages(stream.collect())
    assert [chunk["run"] for message in messages for chunk in message["chunks"]] == list(range(100))
    assert max(len(json.dumps(message)) for message in messages) < 1024 * 1024
