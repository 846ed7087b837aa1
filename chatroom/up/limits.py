"""What the system lets one process have."""

import contextlib
import resource


def allow_many_sockets() -> None:
    """Each socket is an open file: as many as the system allows, instead of the 1,024 that a shell usually hands down."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems call it unlimited, and refuse just that.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
