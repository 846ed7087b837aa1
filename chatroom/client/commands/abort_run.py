from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client import agent_acts

if TYPE_CHECKING:
    from argparse import Namespace

arguments = agent_acts.arguments


def run(args: Namespace) -> int:
    return agent_acts.act(args, "abort")
