"""The demo's agents, apart from the commands they call: what they read out of a message, and what they make of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from machines.demo import builder, git, reviewer, room
from machines.demo.project import FIRST_MESSAGE, MENDING
from machines.demo.repository import NoRepository, create_repository

PATCH = "--- a/x\n+++ b/x\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's repository, and an agent's place in it."""
    folder = create_repository(tmp_path / "shop")
    monkeypatch.chdir(folder)
    return folder


def run_suite(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unittest"], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (FIRST_MESSAGE, MENDING),
        (f"````diff\n{PATCH}````", PATCH),
        (f"~~~patch title\n{PATCH}~~~\n", PATCH),
        (f"```diff\n{PATCH}```\n\n```diff\nanother\n```", PATCH),
        (f"```python\n{PATCH}```", ""),
        (f"```diff\n{PATCH}", ""),
        ("no block at all", ""),
    ],
)
def test_the_builder_takes_the_first_fenced_diff(text: str, found: str) -> None:
    assert builder.find_patch(text) == found


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Mend the price. It is wrong.\n", "Mend the price"),
        (FIRST_MESSAGE, "The discount is applied twice when a cart is priced again"),
        (f"```diff\n{PATCH}```", "Apply the diff of a message"),
        ("x" * 100, "x" * 72),
    ],
)
def test_a_commit_is_called_as_the_message_begins(text: str, subject: str) -> None:
    assert builder.subject_of(text) == subject


def test_a_block_of_markdown_ends_where_it_should() -> None:
    assert room.fenced("plain\n", language="diff") == "```diff\nplain\n```"
    assert room.fenced("a ``` b") == "````\na ``` b\n````"


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (0, "Ran 6 tests in 0.1s\n\nOK\n", "The tests pass: 6 tests, all of them green."),
        (1, "Ran 1 test in 0.1s\n\nFAILED (failures=1)\n", "The tests fail: FAILED (failures=1) of 1 test."),
        (0, "Ran 0 tests in 0.0s\n\nOK\n", "No test was run: the suite could not be loaded, or is empty."),
        (1, "Traceback …", "No test was run: the suite could not be loaded, or is empty."),
        (None, "", "The tests did not end within 300 s."),
    ],
)
def test_the_reviewer_judges_by_what_the_suite_did(code: int | None, output: str, verdict: str) -> None:
    assert reviewer.judge(code, output) == verdict


def test_the_repository_has_one_failing_test_which_the_offered_message_mends(shop: Path) -> None:
    before = run_suite(shop)
    assert before.stderr.strip().endswith("FAILED (failures=1)")
    assert git.apply(MENDING).endswith("1 file changed, 1 insertion(+), 1 deletion(-)")
    assert run_suite(shop).returncode == 0


def test_a_repository_that_is_there_stays_as_it_is(shop: Path) -> None:
    (shop / "README.md").write_text("mine")
    assert create_repository(shop) == shop
    assert (shop / "README.md").read_text() == "mine"


def test_without_git_there_are_words_and_no_half_made_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoRepository, match="git was not found"):
        create_repository(tmp_path / "shop")
    assert list(tmp_path.iterdir()) == []


def test_the_commit_of_an_earlier_attempt_is_found_by_room_and_task(shop: Path) -> None:
    git.apply(MENDING)
    commit = git.commit("Mend it", name="demo/12")
    assert git.find_commit("demo/12") == commit
    assert git.find_commit("demo/1") == ""
    assert "cart.subtotal" in git.patch_of(commit)


def test_what_a_killed_attempt_left_is_set_aside_and_kept(shop: Path) -> None:
    (shop / "shop" / "cart.py").write_text("half done")
    (shop / ".git" / "index.lock").touch()
    assert git.set_aside_leftovers("demo/12") is True
    assert git.git("status", "--porcelain") == ""
    assert "left by an earlier attempt at demo/12" in git.git("stash", "list")
    assert git.set_aside_leftovers("demo/12") is False


def test_git_refuses_in_its_own_words_and_changes_nothing(shop: Path) -> None:
    with pytest.raises(room.Unworkable, match="patch does not apply"):
        git.apply(MENDING.replace("cart.total\n+", "cart.sum\n+"))
    assert git.git("status", "--porcelain") == ""


def test_the_reviewer_looks_at_the_commit_and_not_at_what_others_do_meanwhile(shop: Path) -> None:
    first = git.git("rev-parse", "HEAD").strip()
    (shop / "shop" / "cart.py").write_text("changed meanwhile")
    with git.checked_out(first) as folder:
        assert "changed meanwhile" not in (folder / "shop" / "cart.py").read_text()
    assert not folder.exists()


def test_the_code_under_test_sees_no_token(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody who may write in the room decides what runs here."""
    monkeypatch.setenv("CHATROOM_TOKEN", "secret")
    (shop / "tests" / "test_token.py").write_text(
        "import os, unittest\nclass Token(unittest.TestCase):\n    def test_it(self):\n"
        "        self.assertEqual([name for name in os.environ if name.startswith('CHATROOM_')], [])\n"
    )
    (shop / "tests" / "test_pricing.py").unlink()
    git.git("add", "--all")
    commit = git.commit("Look for a token", name="demo/1")
    said: list[str] = []
    monkeypatch.setattr(room, "tell", lambda task, text: said.append(text))
    monkeypatch.setattr(room, "hand_off", lambda task, *, to, text: said.append(f"{to}: {text}"))
    reviewer.work(room.Task(1, "c_1", 1, f"Committed as {commit}.", "demo/1"))
    assert said[1] == "The tests pass: 3 tests, all of them green."
    assert said[2].startswith("user: **The tests pass")
