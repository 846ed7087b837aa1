from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client.agent_acts import as_text
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    """Nothing beyond what all commands take."""


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect

    answer = connect(args).post("commands/abort_runs")
    lines = [as_text(command) for command in answer["commands"]]
    emit(answer, "\n".join(lines) or "no run to abort", as_json=args.json)
    return 0
