"""The demo's builder: applies the diff of a message to the repository it stands in, commits it, and hands it on. No language model."""

import re
import sys

from machines.demo import git, room

NEXT_ROLE = "reviewer"
DIFF = re.compile(r"^(?P<fence>`{3,}|~{3,})[ \t]*(?:diff|patch)[^\n]*\n(?P<patch>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)


def find_patch(text: str) -> str:
    """The first fenced diff; empty when there is none."""
    found = DIFF.search(text)
    return found["patch"] if found else ""


def subject_of(text: str) -> str:
    """A commit's first line, from the message's first sentence."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if line.startswith(("```", "~~~")):
        line = ""
    return line.partition(". ")[0].partition(": ")[0][:72].rstrip(" .") or "Apply the diff of a message"


def work(task: room.Task) -> None:
    patch = find_patch(task.text)
    if not patch:
        raise room.Unworkable("The message has no fenced diff: expected a block that begins with ```diff and that `git apply` takes.")
    if task.attempt > 1 and (done := git.find_commit(task.name)):
        room.tell(task, f"an earlier attempt committed this as {done[:10]}")
        return hand_on(task, done)
    if task.attempt > 1 and git.set_aside_leftovers(task.name):
        room.tell(task, "set aside what an earlier attempt left half done")
    room.tell(task, f"applying the diff to {git.git('rev-parse', '--short', 'HEAD').strip()}")
    changed = git.apply(patch)
    room.tell(task, f"it applies: {changed.splitlines()[-1].strip() if changed else 'nothing changes'}")
    commit = git.commit(subject_of(task.text), name=task.name)
    room.tell(task, f"committed as {commit[:10]}")
    return hand_on(task, commit)


def hand_on(task: room.Task, commit: str) -> None:
    text = f"Committed as {commit}. Does the test suite pass?\n\n{room.fenced(git.patch_of(commit), language='diff')}"
    room.hand_off(task, to=NEXT_ROLE, text=text)


if __name__ == "__main__":
    sys.exit(room.main(work))
