"""Makes the demo's git repository; what is there already stays as it is."""

import shutil
import subprocess
from pathlib import Path

from machines.demo.project import FILES

AUTHOR = ("-c", "user.name=Chatroom demo", "-c", "user.email=demo@chatroom.invalid", "-c", "commit.gpgsign=false")


class NoRepository(Exception):
    """The demo's repository can't be made; the message says why."""


def create_repository(folder: Path) -> Path:
    """`folder` as a repository whose test suite has one failing test. Whole or not at all: it is made beside, and renamed."""
    if folder.exists():
        return folder
    if shutil.which("git") is None:
        raise NoRepository("git was not found: the demo's agents work in a git repository; install git and start again")
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    for name, text in FILES.items():
        path = beside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(beside, "init", "--quiet")
    git(beside, "symbolic-ref", "HEAD", "refs/heads/main")
    git(beside, "add", "--all")
    git(beside, *AUTHOR, "commit", "--quiet", "--no-verify", "--message", "Price carts, with discounts")
    return beside.rename(folder)


def git(folder: Path, *words: str) -> None:
    done = subprocess.run(["git", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoRepository(f"git {' '.join(words)} in {folder}: {done.stderr.strip() or f'exit {done.returncode}'}")
