"""The SQL statements of the main path, as the database sees them: `python -m bench.statements`, or the short form in `make bench`."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any


def count_statements() -> str:
    """In a process and a home of its own: here nothing of Django is loaded."""
    with tempfile.TemporaryDirectory(prefix="chatroom-bench-") as home:
        environment = {**os.environ, "CHATROOM_HOME": home, "DATABASE_URL": "", "DJANGO_SETTINGS_MODULE": "chatroom.settings"}
        return subprocess.run(
            [sys.executable, "-m", "bench.statements", "--short"], env=environment, capture_output=True, check=True, text=True
        ).stdout


class Recorder:
    def __init__(self) -> None:
        self.statements: list[str] = []

    def __call__(self, execute: Callable[..., Any], sql: str, parameters: Any, many: bool, context: Any) -> Any:
        self.statements.append(sql)
        return execute(sql, parameters, many, context)


def record_acts() -> dict[str, list[str]]:
    """One message to an agent that waits on a socket of this process, received and completed; everything ran once before."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chatroom.settings")
    django.setup()
    from django.core.management import call_command
    from django.db import connection

    from bench.acts import Acts

    call_command("migrate", verbosity=0)
    acts = Acts()
    found: dict[str, list[str]] = {}
    for _ in range(2):
        for name, act in acts.all().items():
            recorder = Recorder()
            with connection.execute_wrapper(recorder):
                act()
            found[name] = recorder.statements
    return found


def main() -> None:
    for name, statements in record_acts().items():
        print(f"{name:44} {len(statements):3} statements")
        if "--short" not in sys.argv:
            print(*(f"    {statement[:110]}" for statement in statements), sep="\n")


if __name__ == "__main__":
    main()
