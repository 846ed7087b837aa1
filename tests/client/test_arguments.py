from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import pytest

from chatroom.client.arguments import join_texts
from chatroom.client.commands.tasks import place
from chatroom.client.errors import ClientError


@pytest.mark.parametrize(
    ("words", "room", "task", "expected"),
    [
        (["demo"], "", None, ("demo", "", 0)),
        ([], "demo", None, ("demo", "", 0)),
        (["other"], "demo", None, ("other", "", 0)),
        (["demo", "cancel", "3"], "", None, ("demo", "cancel", 3)),
        (["cancel", "3"], "demo", None, ("demo", "cancel", 3)),
        (["cancel", "reset", "3"], "demo", None, ("cancel", "reset", 3)),
        (["demo", "force_complete"], "", 3, ("demo", "force-complete", 3)),
        (["retry"], "demo", 3, ("demo", "retry", 3)),
    ],
)
def test_tasks_tells_room_act_and_id_apart(words: list[str], room: str, task: int | None, expected: tuple[str, str, int]) -> None:
    assert place(words, room=room, task=task) == expected


@pytest.mark.parametrize("words", [[], ["demo", "explode", "3"], ["demo", "cancel"], ["demo", "cancel", "three"], ["demo", "3"]])
def test_tasks_refuses_what_it_cannot_tell_apart(words: list[str]) -> None:
    with pytest.raises(ClientError) as refused:
        place(words, room="", task=None)
    assert refused.value.exit_code == 2


def test_a_text_may_begin_with_a_dash() -> None:
    options = {"--text": None, "--json": None}
    joined = join_texts(["demo", "--text", "--- a/file", "--json"], options=options)  # type: ignore[arg-type]
    assert joined == ["demo", "--text=--- a/file", "--json"]
    for words in (["--text", "-"], ["--text", "--json"]):
        assert join_texts(words, options=options) == words  # type: ignore[arg-type]


@pytest.mark.parametrize("words", [("wait_for_tasks", "demo"), ("help", "wait_for_tasks")])
def test_a_command_that_there_is_not_is_wrong_usage(words: tuple[str, ...], call: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = call(*words)
    assert code == 2
    assert "wait_for_tasks" in err


@pytest.mark.parametrize("word", ["version", "--version"])
def test_the_version_is_ours(word: str, call: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = call(word)
    assert (code, out) == (0, f"chatroom {version('chatroom')}\n")
