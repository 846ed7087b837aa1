from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    """Nothing beyond what all commands take."""


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect

    server = connect(args)
    answer = server.get("whoami")
    place = f", {answer['role']} in {answer['room']}" if answer.get("role") else ""
    emit({**answer, "server": server.url}, f"{answer['name']} ({answer['kind']}{place}) on {server.url}", as_json=args.json)
    return 0
