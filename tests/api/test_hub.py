"""What wakes a process when a room changed."""

import threading
import time

import pytest
from channels.layers import InMemoryChannelLayer

from chatroom import hub


def test_two_threads_that_need_the_first_layer_at_once_get_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[InMemoryChannelLayer] = []

    def make_slowly() -> InMemoryChannelLayer:
        """As Channels does it: look, make, keep."""
        if not made:
            layer = InMemoryChannelLayer()
            time.sleep(0.05)  # the fault needs the second thread to look before the first one has kept
            made.append(layer)
        return made[-1]

    monkeypatch.setattr(hub, "get_channel_layer", make_slowly)
    got: list[InMemoryChannelLayer] = []
    threads = [threading.Thread(target=lambda: got.append(hub.channel_layer())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len({id(layer) for layer in got}) == 1
