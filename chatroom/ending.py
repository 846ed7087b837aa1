"""Whether this process is about to end on purpose: a socket that closes then says nothing about the client behind it."""

from collections.abc import Callable

ending = False
_callbacks: list[Callable[[], None]] = []


def when_ending(callback: Callable[[], None]) -> Callable[[], None]:
    """Calls `callback` once, on the event loop's thread, when the process begins to end. Returns a function that forgets it again."""
    _callbacks.append(callback)

    def forget() -> None:
        if callback in _callbacks:
            _callbacks.remove(callback)

    if ending:
        callback()
    return forget


def begin() -> None:
    """Must be called on the event loop's thread; a second call does nothing."""
    global ending
    if ending:
        return
    ending = True
    for callback in list(_callbacks):
        callback()
