"""How this program was called, for the literal commands we print."""

from __future__ import annotations

import os
import sys
from functools import cache


@cache
def called_as() -> str:
    """What a shell in this directory must be given to start this same program again."""
    import shlex
    import shutil

    script = sys.argv[0]
    if os.path.basename(script) == "chatroom":  # noqa: PTH119 (pathlib costs a tenth of our start)
        return "chatroom" if shutil.which("chatroom") == script else shlex.quote(script)
    return shlex.join(sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1])


def command(*words: str, server: str | None = None) -> str:
    """A line to paste: the words quoted, and the server when it was given by option."""
    import shlex

    tail = ["--server", server] if server else []
    return f"{called_as()} {shlex.join([*words, *tail])}"
