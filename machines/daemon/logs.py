"""The live tail: what agents print goes to the server in small pieces. A hint, not the log: the log stays on this machine."""

import codecs
import re
from typing import Any

from machines.daemon.process import AgentProcess

CHUNK = 8 * 1024
TOGETHER = 16  # as JSON a piece may be six times as long, and the server ends a connection for a message of more than 1 MiB
BEHIND = 64 * 1024  # further behind than this, the middle is left out
HELD_BACK = 1024  # longer than this no beginning of a control sequence waits for its end; less than a piece, so that each gets on
# The beginning of a control sequence, up to the end: the server leaves out whole ones, and can't know the rest of a half one.
BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?|[PX^_][^\x1b]*\x1b?|[ -/]*)\Z")


class LogStream:
    """Looks at every living run, and once more at those that have ended."""

    def __init__(self) -> None:
        self.watched: dict[int, AgentProcess] = {}

    def watch(self, process: AgentProcess) -> None:
        self.watched[process.info.run] = process

    def collect(self) -> list[dict[str, Any]]:
        """At most one piece per run."""
        chunks = []
        for run, process in list(self.watched.items()):
            has_ended = process.has_ended()
            if (chunk := next_chunk(process, is_last=has_ended)) is not None:
                chunks.append(chunk)
            elif has_ended:
                del self.watched[run]
        return chunks


def in_messages(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "log", "chunks": chunks[start : start + TOGETHER]} for start in range(0, len(chunks), TOGETHER)]


def next_chunk(process: AgentProcess, *, is_last: bool) -> dict[str, Any] | None:
    end, sent = process.log.end(), process.log_offset
    if end <= sent:
        return None
    wanted = process.log.line_start(end - CHUNK) if end - sent > BEHIND else sent
    offset, data = process.log.read(wanted, limit=CHUNK)
    is_before_gap = offset + len(data) < end and len(data) < CHUNK
    text, used = decode(data, is_last=is_before_gap or (is_last and offset + len(data) >= end))
    if not used:
        return None
    process.log_offset = offset + used
    return {"run": process.info.run, "offset": offset, "end": offset + used, "skipped": offset - sent, "text": text}


def decode(data: bytes, *, is_last: bool) -> tuple[str, int]:
    """The text, and how many bytes it took: a character or a control sequence cut in two is left for the next piece."""
    begun = None if is_last else BEGUN.search(data)
    is_held_back = begun is not None and len(data) - begun.start() <= HELD_BACK
    if begun is not None and is_held_back:
        data = data[: begun.start()]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    # Where a control sequence begins, no character goes on.
    text = decoder.decode(data, final=is_last or is_held_back)
    left = len(decoder.getstate()[0])
    return text.replace("\0", "\ufffd"), len(data) - left
