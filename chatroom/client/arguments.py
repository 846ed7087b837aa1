"""The grammar that all commands share: ROOM, --role, --claim, the text, and what the environment fills in."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from chatroom.client.errors import usage_error

TEXT_OPTIONS = ("--text", "--reason")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise usage_error(f"{message}\n{self.format_usage().strip()}")


def new_parser(name: str, *, prog: str, description: str) -> Parser:
    return Parser(prog=f"{prog} {name}".strip(), description=description, allow_abbrev=False)


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    return parser.parse_intermixed_args(join_texts(argv, options=parser._option_string_actions))


def join_texts(argv: list[str], *, options: dict[str, argparse.Action]) -> list[str]:
    """`--text -x` → `--text=-x`: what people and agents write may begin with a dash and is not an option for that."""
    joined: list[str] = []
    for word in argv:
        is_text = joined and joined[-1] in TEXT_OPTIONS and word.startswith("-") and word != "-" and word not in options
        if is_text:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def add_connection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", metavar="URL", help="the server's address (CHATROOM_SERVER)")
    parser.add_argument("--token", help="a token to act with (CHATROOM_TOKEN); else what `login` stored")
    parser.add_argument("--json", action="store_true", help="answer, and errors, as JSON on standard output")


def add_room(parser: argparse.ArgumentParser) -> None:
    given = os.environ.get("CHATROOM_ROOM") or None
    nargs = {"nargs": "?", "default": given} if given else {}
    parser.add_argument("room", metavar="ROOM", help="id or slug of the room (CHATROOM_ROOM)", **nargs)  # type: ignore[arg-type]


def add_role(parser: argparse.ArgumentParser) -> None:
    given = os.environ.get("CHATROOM_ROLE") or None
    parser.add_argument("--role", required=given is None, default=given, help="a role of the room's team (CHATROOM_ROLE)")


def add_claim(parser: argparse.ArgumentParser) -> None:
    given = os.environ.get("CHATROOM_CLAIM") or None
    parser.add_argument("--claim", required=given is None, default=given, help="the claim that came with the task (CHATROOM_CLAIM)")


def add_text(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--text", help="the text; - reads it from standard input")
    group.add_argument("--file", help="a file with the text")


def read_text(args: argparse.Namespace) -> str:
    """The text as given. Bytes that are no UTF-8 become replacement characters: JSON cannot carry them."""
    if args.text == "-":
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    if args.text is not None:
        return str(args.text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    try:
        with open(args.file, "rb") as file:  # noqa: PTH123 (pathlib costs a tenth of our start)
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        raise usage_error(f"--file {args.file}: {error.strerror}") from None


def seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected seconds, for example 600")
    return found
