"""What a terminal gets to see: text without control sequences, tables, JSON."""

from __future__ import annotations

import json
import re
import sys

# Escape sequences (OSC and its kin with their payload, CSI, then any other), the control characters of C0 and C1 but newline
# and tab, and the marks that turn the direction of text. What others wrote must not move a cursor, nor hide what it says.
CONTROL = re.compile(
    "(?:\x1b[\\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\\\|\x9c)?"
    "|(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]?"
    "|\x1b[ -/]*[0-~]?"
    "|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean(text: object) -> str:
    return CONTROL.sub("", str(text)).encode("utf-8", "replace").decode()


def one_line(text: object) -> str:
    return " ".join(clean(text).split())


def say(text: str) -> None:
    """To standard error, for the person or the log beside the command's own output."""
    if sys.stderr is None:
        return  # print() would take standard output instead
    try:
        print(clean(text), file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody listens any more; that must not decide how the command ends


def write(text: str) -> None:
    """To standard output, at once: what cannot be written must fail here, not when Python ends."""
    if sys.stdout is None:
        raise BrokenPipeError("standard output is closed")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def emit(answer: dict[str, object], human: str, *, as_json: bool) -> None:
    write(json.dumps(answer) if as_json else clean(human))


def table(heads: list[str], rows: list[list[object]]) -> str:
    cells = [heads, *([one_line("-" if cell in {None, ""} else cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)


def clock(time: object, *, form: str = "%H:%M:%S") -> str:
    """RFC 3339 as the terminal's own local time."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(str(time)).astimezone().strftime(form)
    except ValueError:
        return one_line(time)
