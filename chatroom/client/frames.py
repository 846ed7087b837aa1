"""RFC 6455 frames as seen by a client: bytes in, messages out. No socket here."""

from __future__ import annotations

import os

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0
SIZE_LIMIT = 16 * 1024 * 1024


class ProtocolError(Exception):
    """The server broke the rules of the protocol; `close_code` is what to tell it."""

    def __init__(self, message: str, *, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


def masked(payload: bytes, *, mask: bytes) -> bytes:
    # One exclusive-or of two big numbers is a hundred times faster than a loop over bytes.
    size = len(payload)
    stretched = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(stretched, "big")).to_bytes(size, "big")


def encode_frame(opcode: int, payload: bytes, *, mask: bytes | None = None) -> bytes:
    """One whole frame, masked as every client must."""
    mask = mask or os.urandom(4)
    size = len(payload)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65536:
        head = bytes([0x80 | opcode, 0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0x80 | 127]) + size.to_bytes(8, "big")
    return head + mask + masked(payload, mask=mask)


class FrameReader:
    """Feed it what arrived; `next_message` gives whole messages in order, control frames between the fragments of others included."""

    def __init__(self, size_limit: int = SIZE_LIMIT) -> None:
        self.size_limit = size_limit
        self.buffer = bytearray()
        self.fragments = bytearray()
        self.opcode = CONTINUATION  # of the message whose fragments are being collected

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def next_message(self) -> tuple[int, bytes] | None:
        while (frame := self._next_frame()) is not None:
            is_final, opcode, payload = frame
            if opcode >= CLOSE:
                return opcode, payload
            if (opcode == CONTINUATION) != (self.opcode != CONTINUATION):
                raise ProtocolError("a continuation without a beginning, or a new message inside another")
            self.opcode = self.opcode or opcode
            self.fragments += payload
            if is_final:
                message = self.opcode, bytes(self.fragments)
                self.opcode = CONTINUATION
                self.fragments.clear()
                return message
        return None

    def _next_frame(self) -> tuple[bool, int, bytes] | None:
        if len(self.buffer) < 2:
            return None
        first, second = self.buffer[0], self.buffer[1]
        is_final, opcode, size = bool(first & 0x80), first & 0x0F, second & 0x7F
        self._check_head(first, second)
        start = 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(self.buffer) < start:
                return None
            size = int.from_bytes(self.buffer[2:start], "big")
        if size + len(self.fragments) > self.size_limit:
            raise ProtocolError(f"a message of more than {self.size_limit} bytes", close_code=1009)
        if len(self.buffer) < start + size:
            return None
        payload = bytes(self.buffer[start : start + size])
        del self.buffer[: start + size]
        return is_final, opcode, payload

    @staticmethod
    def _check_head(first: int, second: int) -> None:
        opcode = first & 0x0F
        if first & 0x70:
            raise ProtocolError("reserved bits are set, but no extension was agreed on")
        if opcode not in {CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG}:
            raise ProtocolError(f"an unknown kind of frame: {opcode}")
        if second & 0x80:
            raise ProtocolError("a masked frame from the server")
        if opcode >= CLOSE and (not first & 0x80 or second & 0x7F > 125):
            raise ProtocolError("a control frame that is fragmented or longer than 125 bytes")
