"""Reports wait here, on disk and in order, until the server has acknowledged them.

A report is stored before it is sent and removed by its acknowledgement, so neither a lost connection nor the daemon's own death
loses or reorders one. SQLite with synchronous=FULL: what a kill or a power cut interrupts was never stored.
"""

import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machines.daemon.state import Say, set_aside

SCHEMA = "CREATE TABLE IF NOT EXISTS reports (seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, body TEXT NOT NULL)"


@dataclass(frozen=True)
class Report:
    seq: int
    key: str
    body: dict[str, Any]


class Outbox:
    """Not thread-safe: the daemon uses it from one thread of its own."""

    def __init__(self, path: Path, *, say: Say) -> None:
        self.path, self.say = path, say
        self.unstored: dict[str, dict[str, Any]] = {}
        self.database = self.open()

    def open(self) -> sqlite3.Connection:
        try:
            return self.connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise  # cannot be opened at all: no rights, no room
            aside = set_aside(self.path, problem=str(error), say=self.say)
            for suffix in ("-wal", "-shm"):
                if (beside := self.path.with_name(self.path.name + suffix)).exists():
                    beside.replace(aside.with_name(aside.name + suffix))
            return self.connect()

    def connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, isolation_level=None, timeout=5, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
            found = database.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            database.execute(SCHEMA)
        except BaseException:
            database.close()
            raise
        self.path.chmod(0o600)
        return database

    def put(self, key: str, body: dict[str, Any]) -> bool:
        """False when that key waits already: the first one stands. A full disk keeps it in memory, and says so once."""
        if key in self.unstored:
            return False
        body = {**body, "happened_at": time.time()}
        if self.unstored:  # keep the order: nothing overtakes what could not be stored
            self.unstored[key] = body
            self.store_the_rest()
            return True
        try:
            return self.insert(key, body)
        except sqlite3.OperationalError as error:
            self.say(f"{self.path} cannot be written ({error}): reports are kept in memory until there is room")
            self.unstored[key] = body
            return True

    def insert(self, key: str, body: dict[str, Any]) -> bool:
        added = self.database.execute("INSERT OR IGNORE INTO reports (key, body) VALUES (?, ?)", (key, json.dumps(body)))
        return added.rowcount == 1

    def store_the_rest(self) -> None:
        """Tries again what a full disk refused."""
        for key, body in list(self.unstored.items()):
            try:
                self.insert(key, body)
            except sqlite3.OperationalError:
                return
            del self.unstored[key]
        self.say(f"{self.path} can be written again")

    def waiting(self, *, after: int = 0, limit: int = 100) -> list[Report]:
        rows = self.database.execute("SELECT seq, key, body FROM reports WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        return [Report(seq, key, json.loads(body)) for seq, key, body in rows]

    def kept_in_memory(self) -> list[Report]:
        """What a full disk refused, in order; later than everything stored. Gets its place once there is room."""
        return [Report(0, key, body) for key, body in self.unstored.items()]

    def acknowledge(self, key: str) -> None:
        self.unstored.pop(key, None)
        try:
            self.database.execute("DELETE FROM reports WHERE key = ?", (key,))
        except sqlite3.OperationalError as error:
            self.say(f"{self.path} cannot be written ({error}): {key} will be sent again")

    def size(self) -> int:
        return int(self.database.execute("SELECT count(*) FROM reports").fetchone()[0]) + len(self.unstored)

    def close(self) -> None:
        self.database.close()
