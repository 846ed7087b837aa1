"""The second way in which a part notices that `up` is gone: where the kernel does not tell, its parent changes."""

import os
import threading
import time

LOOK_INTERVAL = 1.0


def end_with_parent() -> None:
    """Ends this process at once when its parent ends. Everything survives that by design; leaving a process behind is worse."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_INTERVAL)
        os._exit(1)

    if parent > 1:
        threading.Thread(target=watch, name="parent", daemon=True).start()


def end_within(seconds: float) -> None:
    """An orderly end that gets stuck (a hung database, a hung broker) is finished the hard way."""
    timer = threading.Timer(seconds, os._exit, args=(1,))
    timer.daemon = True
    timer.start()
