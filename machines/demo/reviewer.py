"""The demo's reviewer: runs the test suite of the commit it is given, and tells the verdict with the output. No language model."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from machines.demo import git, room

COMMIT = re.compile(r"\b[0-9a-f]{40}\b")
RAN = re.compile(r"^Ran (\d+) tests? in", re.MULTILINE)
TIME_LIMIT, OUTPUT_LIMIT = 300.0, 20_000


def work(task: room.Task) -> None:
    found = COMMIT.search(task.text)
    revision = found[0] if found else git.git("rev-parse", "HEAD").strip()
    with git.checked_out(revision) as folder:
        room.tell(task, f"checked out {revision[:10]}; running its tests")
        # The code under test came in a message: it gets none of our credentials.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CHATROOM_")}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-m", "unittest", "--verbose"]
        code, output = run_in(folder, command, environment=environment)
    verdict = judge(code, output)
    room.tell(task, verdict)
    room.hand_off(task, to="user", text=f"**{verdict}** (commit {revision[:10]})\n\n{room.fenced(output)}")


def run_in(folder: Path, arguments: list[str], *, environment: dict[str, str]) -> tuple[int | None, str]:
    """Exit code (None: it took too long) and the end of the output, which may be as long as it likes: it goes to a file."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            arguments, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code: int | None = process.wait(TIME_LIMIT)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            code = None
        output.seek(max(0, output.seek(0, 2) - OUTPUT_LIMIT))
        return code, output.read().decode("utf-8", "replace")


def judge(code: int | None, output: str) -> str:
    found = RAN.search(output)
    count = int(found[1]) if found else 0
    if code is None:
        return f"The tests did not end within {TIME_LIMIT:g} s."
    if count == 0:
        return "No test was run: the suite could not be loaded, or is empty."
    tests = f"{count} test{'s' if count != 1 else ''}"
    if code == 0:
        return f"The tests pass: {tests}, all of them green."
    last = output.rstrip().splitlines()[-1]
    return f"The tests fail: {last} of {tests}."


if __name__ == "__main__":
    sys.exit(room.main(work))
