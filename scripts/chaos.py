"""`make chaos SEED=… MINUTES=…`: 200 tasks through three roles on three daemons while every part is killed and frozen at random.

DATABASE_URL and REDIS_URL choose the stack; without them SQLite and the embedded Valkey. Ends with 1 when a promise was broken.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.processes.chaos import SETTINGS, Chaos
from tests.processes.conftest import Stack


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--tasks", type=int, default=200)
    options = parser.parse_args()
    stack = Stack()
    print(
        f"{'PostgreSQL + Redis' if stack.database_url else 'SQLite + embedded Valkey'}, {options.minutes:g} min, seed {options.seed}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="chatroom-chaos-", ignore_cleanup_errors=True) as folder:
        program = stack.program(Path(folder) / "home", settings=SETTINGS)
        try:
            program.start("--no-demo")
            report = Chaos(program, seed=options.seed, minutes=options.minutes, tasks=options.tasks).run()
            print(*report.lines(), "kept its promises" if report.is_good else "BROKE A PROMISE", sep="\n", flush=True)
            if not report.is_good and (kept := os.environ.get("CHAOS_KEEP")):
                print(f"kept: {Path(folder).rename(kept)}")
            return 0 if report.is_good else 1
        finally:
            program.stop()
            stack.remove()


if __name__ == "__main__":
    sys.exit(main())
