"""What the demo's agents ask of git, in the directory they work in. Patches go through standard input, nothing through a shell."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machines.demo import room

AUTHOR = ("-c", "user.name=builder", "-c", "user.email=builder@chatroom.invalid", "-c", "commit.gpgsign=false")
TRAILER = "Chatroom-Task"


class GitRefused(room.Unworkable):
    """git said no, in its own words."""


def git(*words: str, text: str = "") -> str:
    try:
        done = room.run(["git", *words], text=text)
    except FileNotFoundError:
        raise GitRefused("git was not found on this machine") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip() or f"exit {done.returncode}"
        act = next(word for word in words if not word.startswith("-") and "=" not in word)
        raise GitRefused(f"`git {act}` refused:\n\n{room.fenced(said)}")
    return done.stdout


def apply(patch: str) -> str:
    """Applies it to the files and the index, both or neither. Returns what it changes, a line for each file."""
    git("apply", "--index", "--whitespace=nowarn", "-", text=patch)
    return git("diff", "--cached", "--stat").strip()


def commit(subject: str, *, name: str) -> str:
    git(*AUTHOR, "commit", "--quiet", "--no-verify", "--file", "-", text=f"{subject}\n\n{TRAILER}: {name}\n")
    return git("rev-parse", "HEAD").strip()


def find_commit(name: str) -> str:
    """The commit that an earlier attempt at this task made; empty when there is none."""
    for line in git("log", "-100", f"--format=%H %(trailers:key={TRAILER},valueonly,separator=%x2C)").splitlines():
        found, _, told = line.partition(" ")
        if told.strip() == name:
            return found
    return ""


def set_aside_leftovers(name: str) -> bool:
    """What an earlier attempt left half done when it was killed; kept in the stash, for nothing that was made is thrown away."""
    # Its git was killed with it. Nobody else writes here: there is one builder at a time.
    Path(git("rev-parse", "--git-path", "index.lock").strip()).unlink(missing_ok=True)
    if not git("status", "--porcelain").strip():
        return False
    git(*AUTHOR, "stash", "push", "--quiet", "--include-untracked", "--message", f"left by an earlier attempt at {name}")
    return True


def patch_of(revision: str) -> str:
    return git("show", "--format=", revision)


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """That commit in a directory of its own: what others do meanwhile in this one does not matter."""
    with tempfile.TemporaryDirectory(prefix="chatroom-review-") as folder:
        git("clone", "--quiet", "--shared", "--no-checkout", "--", str(Path.cwd()), folder)
        git("-C", folder, "checkout", "--quiet", "--detach", revision)
        yield Path(folder)
