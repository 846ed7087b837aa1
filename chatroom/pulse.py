"""What the web process does by itself: the pulse, and SQLite's checkpoints."""

import asyncio
import logging

from django.conf import settings
from django.db import DatabaseError, InterfaceError

from .db import checkpoint, in_liveness, in_read
from .sweep import beat_pulse

log = logging.getLogger(__name__)
CHECKPOINT_INTERVAL, LONG_LOG = 10.0, 10_000


async def keep_pulse() -> None:
    """For ever. While the database is away the pulse grows stale, and everybody's clock stands still."""
    is_lost = False
    while True:
        try:
            await in_liveness(beat_pulse)
            if is_lost:
                log.warning("the database is back")
            is_lost = False
        except (DatabaseError, InterfaceError) as error:
            if not is_lost:
                log.warning("the database is away (%s): nothing is declared dead until it has been back for a while", error)
            is_lost = True
        await asyncio.sleep(1 if is_lost else settings.PULSE_INTERVAL)


async def keep_checkpointing() -> None:
    """Seldom, for commits that meet one wait for the disk; sooner again when the log has grown long."""
    pause = CHECKPOINT_INTERVAL
    while True:
        await asyncio.sleep(pause)
        try:
            pages = await in_read(checkpoint)
            pause = CHECKPOINT_INTERVAL if pages < LONG_LOG else 1.0
        except DatabaseError as error:
            log.debug("no checkpoint now: %s", error)
