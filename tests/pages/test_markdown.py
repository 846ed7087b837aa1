import pytest

from chatroom.markdown import LONGEST_PARSED, render_markdown

HOSTILE = [
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "<img src=x onerror=alert(1)>",
    "![x](http://elsewhere.example/pixel.png)",
    "[x](data:text/html;base64,PHNjcmlwdD4=)",
    "<a href='javascript:alert(1)' onclick='x'>x</a>",
    "```html\n<script>alert(1)</script>\n```",
    "```diff\n+<script>alert(1)</script>\n```",
    "<style>body{display:none}</style>",
    "<iframe src=//elsewhere.example></iframe>",
    "[x](//elsewhere.example 'a\" onmouseover=\"b')",
]

BAD = ("<script", "<img", "<style", "<iframe", 'href="javascript', 'href="data', ' onmouseover="', "<a href='")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_markup_of_the_writer_survives(text: str) -> None:
    html = render_markdown(text).lower()
    assert not [
        bad
        for bad in ("<script", "<img", "<style", "<iframe", 'href="javascript', 'href="data', ' onmouseover="', "<a href='")
        if bad in html
    ]


def test_what_people_write_is_shown_as_they_meant_it() -> None:
    html = render_markdown("Make `it` **idempotent**:\n\n1. one\n2. two\n\n| a | b |\n|---|---|\n| 1 | 2 |")
    assert all(tag in html for tag in ("<code>it</code>", "<strong>idempotent</strong>", "<ol>", "<td>1</td>"))


def test_a_line_break_is_one() -> None:
    assert "one<br>" in render_markdown("one\ntwo")


def test_the_lines_of_a_diff_are_marked() -> None:
    html = render_markdown("```diff\n--- a.py\n-old\n+new\n same\n```")
    assert '<span class="removed">-old\n</span><span class="added">+new\n</span>' in html
    assert '<span class="place">--- a.py' in html


def test_links_tell_nothing_to_where_they_lead() -> None:
    assert 'rel="noopener noreferrer nofollow"' in render_markdown("[docs](https://docs.example/)")


def test_a_very_long_text_is_cut_and_not_parsed() -> None:
    html = render_markdown("[" * (LONGEST_PARSED * 5))
    assert len(html) < LONGEST_PARSED + 100


def test_the_lines_of_code_are_escaped_once() -> None:
    assert "a &lt; b &amp;&amp; c" in render_markdown("```\na < b && c\n```")
