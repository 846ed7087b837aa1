from __future__ import annotations

import io

import pytest

from chatroom.client.output import clean, clock, say, table, write


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("plain\n\ttext — ünï ✓", "plain\n\ttext — ünï ✓"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0payload\x1b\\after", "after"),
        ("\x9b2Jwiped", "wiped"),
        ("\x1b(0line\x1bc", "line"),
        ("bell\x07 back\x08 null\x00 return\r\n", "bell back null return\n"),
        ("abc\u202edcba\u2066", "abcdcba"),
        ("lone \ud800 half", "lone ? half"),
        ("unfinished \x1b[", "unfinished "),
    ],
)
def test_control_sequences_never_reach_a_terminal(written: str, shown: str) -> None:
    assert clean(written) == shown


def test_a_table_is_aligned_and_each_cell_stays_on_one_line() -> None:
    text = table(["ROLE", "NOTE"], [["builder", "two\nlines\x1b[2J"], ["qa", None]])
    assert text.splitlines() == ["ROLE     NOTE", "builder  two lines", "qa       -"]


def test_a_terminal_of_another_encoding_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="latin-1"))
    write("ü → ✓")
    assert written.getvalue().decode("latin-1") == "ü \\u2192 \\u2713\n"


def test_without_any_standard_output_writing_fails_and_nothing_else_gets_the_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", None)
    with pytest.raises(OSError, match="standard output is closed"):
        write("x")
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr("sys.stderr", None)
    say("an error")
    assert written.getvalue() == ""


def test_what_is_no_time_is_shown_as_it_is() -> None:
    assert clock("soon\n") == "soon"
