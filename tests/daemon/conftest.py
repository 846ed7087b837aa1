from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.fakes import Machine


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def machine(tmp_path: Path, said: list[str]) -> AsyncIterator[Machine]:
    """A machine whose server is played by the test; its processes are real."""
    found = Machine(tmp_path, said=said)
    yield found
    await found.end()
