from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words
from chatroom.client.errors import WORK_FAILED
from chatroom.client.output import clean, emit, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from chatroom.client.server import Server


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    words.add_text(parser)
    parser.add_argument("--to", metavar="R", help="the role that gets it; without it the team's entry point")
    parser.add_argument("--wait", action="store_true", help="wait for the end of the work: 0 when it is done, 9 when it failed")


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.server import path

    server = connect(args)
    answer = server.post(path("rooms", args.room, "messages"), {"text": words.read_text(args), "to": args.to})
    sent = f"message {answer['message']}: task {answer['task']} is {answer['status']}"
    if not args.wait:
        emit(answer, sent, as_json=args.json)
        return 0
    say(f"{sent}; waiting for its end…")
    return wait_for_end(server, args, answer)


def wait_for_end(server: Server, args: Namespace, sent: dict[str, Any]) -> int:
    server.patience = None  # the work goes on however long we cannot see it
    chain = ended_chain(server, args.room, sent["task"])
    has_failed, reason = chain["chain_state"] == "failed", chain.get("chain_reason") or "no reason was given"
    result = final_message(server, args.room, sent, chain)
    whole = {
        **sent,
        "status": chain["status"],
        "chain_state": chain["chain_state"],
        "chain_reason": chain.get("chain_reason"),
        "result": result,
    }
    if has_failed:
        whole["error"] = {"code": "work_failed", "message": reason, "current": chain["chain_state"], "allowed": []}
        say(f"send_message: the work failed: {reason}")
    if args.json or result:
        emit(whole, clean(result["text"]) if result else "", as_json=args.json)
    return WORK_FAILED if has_failed else 0


def ended_chain(server: Server, room: str, task: int) -> dict[str, Any]:
    from chatroom.client.feed import last_event, later_events
    from chatroom.client.server import path

    # The cursor first, then the look: what happens between the two comes as an event.
    after = last_event(server, room)
    chain = server.get(path("rooms", room, "tasks", task))
    if chain["chain_state"] == "open":
        for _ in later_events(server, room, after=after):
            chain = server.get(path("rooms", room, "tasks", task))
            if chain["chain_state"] != "open":
                break
    return chain


def final_message(server: Server, room: str, sent: dict[str, Any], chain: dict[str, Any]) -> dict[str, Any] | None:
    """What the chain posted to the user: its last word."""
    from chatroom.client.feed import messages_between

    tasks = {task["id"] for task in chain["chain_tasks"]}
    posted = [message for message in messages_between(server, room, first=sent["message"] + 1, last=2**62) if message["task"] in tasks]
    to_user = [message for message in posted if message["to"] == "user"]
    return next(reversed(to_user or posted), None)
