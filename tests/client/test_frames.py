from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, Side, State

from chatroom.client.frames import BINARY, CLOSE, PING, TEXT, FrameReader, ProtocolError, encode_frame


def frame(opcode: Opcode, data: bytes, *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=False)


@given(st.sampled_from([0, 1, 125, 126, 127, 65535, 65536, 200_000]))
def test_another_implementation_reads_every_length_of_frame_we_send(size: int) -> None:
    reader = Protocol(Side.SERVER, state=State.OPEN, max_size=None)
    payload = bytes(number % 251 for number in range(size))
    reader.receive_data(encode_frame(BINARY, payload))
    (found,) = reader.events_received()
    assert isinstance(found, Frame)
    assert (found.opcode, found.data) == (Opcode.BINARY, payload)


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=5), st.integers(1, 50))
def test_messages_arrive_whole_however_the_bytes_are_cut(payloads: list[bytes], cut: int) -> None:
    stream = b"".join(frame(Opcode.BINARY, payload) for payload in payloads)
    reader, found = FrameReader(), []
    for start in range(0, len(stream), cut):
        reader.feed(stream[start : start + cut])
        while (message := reader.next_message()) is not None:
            found.append(message)
    assert found == [(BINARY, payload) for payload in payloads]


def test_a_ping_between_fragments_comes_first_and_the_message_whole() -> None:
    reader = FrameReader()
    reader.feed(frame(Opcode.TEXT, b"one ", fin=False) + frame(Opcode.PING, b"?") + frame(Opcode.CONT, b"two"))
    assert [reader.next_message(), reader.next_message(), reader.next_message()] == [(PING, b"?"), (TEXT, b"one two"), None]


@pytest.mark.parametrize(
    ("data", "close_code"),
    [
        pytest.param(encode_frame(TEXT, b"masked"), 1002, id="masked"),  # by a random key, which must not be its name
        (b"\xc1\x00", 1002),  # a reserved bit
        (b"\x83\x00", 1002),  # an unknown opcode
        (frame(Opcode.CONT, b"no beginning"), 1002),
        (frame(Opcode.TEXT, b"a", fin=False) + frame(Opcode.TEXT, b"b"), 1002),
        (bytes([CLOSE, 0]), 1002),  # a fragmented control frame
        (b"\x89\x7e\x00\x80", 1002),  # a ping of 128 bytes
        (b"\x82\x7f" + (101).to_bytes(8, "big"), 1009),
        (frame(Opcode.BINARY, bytes(60), fin=False) + frame(Opcode.CONT, bytes(60)), 1009),
    ],
)
def test_a_server_that_breaks_the_rules_is_refused(data: bytes, close_code: int) -> None:
    reader = FrameReader(size_limit=100)
    reader.feed(data)
    with pytest.raises(ProtocolError) as refused:
        reader.next_message()
    assert refused.value.close_code == close_code
