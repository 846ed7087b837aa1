"""Untrusted markdown as clean HTML. Raw HTML is escaped by the parser, and what it makes passes a list of allowed tags as well."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

# Longer texts are shown as they are, and cut: parsing is for what people read. The whole text is behind the message's link.
LONGEST_PARSED = 20_000
TAGS = {
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "strong", "em", "s", "a"),
    *("code", "pre", "span", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}, "span": {"class"}, "code": {"class"}}


def render_fence(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """A code block; the lines of a diff are marked, so that the page can tint them."""
    token = tokens[index]
    language = token.info.split()[0].lower() if token.info.strip() else ""
    lines: list[str] = [escape(line) for line in token.content.rstrip("\n").split("\n")]
    if language in {"diff", "patch"}:
        lines = [mark_line(line) for line in lines]
        return f'<pre><code class="diff">{"".join(lines)}</code></pre>\n'
    return f"<pre><code>{chr(10).join(lines)}\n</code></pre>\n"


def mark_line(line: str) -> str:
    kinds = {"+": "added", "-": "removed", "@": "place"}
    is_file_name = line.startswith(("+++", "---"))
    return f'<span class="{"place" if is_file_name else kinds.get(line[:1], "same")}">{line}\n</span>'


def make_parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
    parser.add_render_rule("fence", render_fence)
    return parser


PARSER = make_parser()


def render_markdown(text: str) -> SafeString:
    if len(text) > LONGEST_PARSED:
        return mark_safe(f"<pre><code>{escape(text[:LONGEST_PARSED])}\n</code></pre>")
    return parse(text)


# Messages never change; a page that opens shows the newest again.
@lru_cache(maxsize=500)
def parse(text: str) -> SafeString:
    cleaned = nh3.clean(
        PARSER.render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return mark_safe(cleaned)
