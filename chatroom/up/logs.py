"""The parts write to files; what a person should see of it is repeated on the terminal."""

import re
import time
from collections import deque
from pathlib import Path

# Not what a request was refused for (4xx): whoever asked has been told.
IMPORTANT = re.compile(r"^\S+ \S+ (?P<text>(WARNING (?!django\.request )|ERROR |CRITICAL ).*)")
SAME_AFTER = 60.0
LINES_PER_MINUTE = 12


class LogTail:
    """Yields the important lines that were added since the last look, none twice within a minute, and not too many."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = path.stat().st_size if path.exists() else 0
        self.said: dict[str, float] = {}
        self.times: deque[float] = deque()

    def new_lines(self) -> list[str]:
        return [line for line in map(self._important, self._read()) if line]

    def _read(self) -> list[str]:
        try:
            size = self.path.stat().st_size
            if size < self.position:  # it was set aside, and begun anew
                self.position = 0
            with self.path.open("rb") as file:
                file.seek(self.position)
                text = file.read(256 * 1024)
        except OSError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self.position += len(complete)
        return complete.decode(errors="replace").splitlines()

    def _important(self, line: str) -> str:
        found = IMPORTANT.match(line)
        if not found:
            return ""
        text, now = found["text"][:400], time.monotonic()
        while self.times and now - self.times[0] > 60:
            self.times.popleft()
        if now - self.said.get(text, -SAME_AFTER) < SAME_AFTER or len(self.times) >= LINES_PER_MINUTE:
            return ""
        if len(self.said) > 200:
            self.said.clear()
        self.said[text] = now
        self.times.append(now)
        return text if len(self.times) < LINES_PER_MINUTE else f"{text} (more of it in {self.path})"


def last_lines(path: Path, *, count: int) -> list[str]:
    """The newest lines that are not blank."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line[:400] for line in lines if line.strip()][-count:]
