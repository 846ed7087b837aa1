"""The live tail: what agents print goes to the server in small pieces. A hint, not the log: the log stays on this machine."""

import codecs
from typing import Any

from machines.daemon.process import AgentProcess

CHUNK = 8 * 1024
BEHIND = 64 * 1024  # further behind than this, the middle is left out


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


def next_chunk(process: AgentProcess, *, is_last: bool) -> dict[str, Any] | None:
    end, sent = process.log.end(), process.log_offset
    if end <= sent:
        return None
    wanted = end - CHUNK if end - sent > BEHIND else sent
    offset, data = process.log.read(wanted, limit=CHUNK)
    text, used = decode(data, is_last=is_last and offset + len(data) >= end)
    if not used:
        return None
    process.log_offset = offset + used
    return {"run": process.info.run, "offset": offset, "end": offset + used, "skipped": offset - sent, "text": text}


def decode(data: bytes, *, is_last: bool) -> tuple[str, int]:
    """The text, and how many bytes it took: a character cut in two is left for the next piece."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=is_last)
    left = len(decoder.getstate()[0])
    return text.replace("\0", "\ufffd"), len(data) - left
