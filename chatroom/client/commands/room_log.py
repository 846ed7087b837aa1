from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from chatroom.client import arguments as words
from chatroom.client.output import clean, clock, emit, one_line, write

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    words.add_room(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what happens from now on")
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="the newest N events, at most 500 (100)")


def run(args: Namespace) -> int:
    from chatroom.client.credentials import connect
    from chatroom.client.feed import later_events, with_messages
    from chatroom.client.server import path

    server = connect(args, patience=None) if args.follow else connect(args)
    answer = server.get(path("rooms", args.room, "events"), limit=args.limit)
    events = with_messages(server, args.room, answer["events"])
    if not args.follow:
        emit({"events": events, "last": answer["last"]}, "\n".join(as_text(event) for event in events), as_json=args.json)
        return 0
    show(events, as_json=args.json)
    for batch in later_events(server, args.room, after=answer["last"]):
        show(with_messages(server, args.room, batch), as_json=args.json)
    return 0


def show(events: list[dict[str, Any]], *, as_json: bool) -> None:
    """With --json each event is a line of its own."""
    for event in events:
        write(json.dumps(event) if as_json else as_text(event))


def as_text(event: dict[str, Any]) -> str:
    time = clock(event["time"])
    if message := event.get("message"):
        text = clean(message["text"]).strip().replace("\n", "\n          ")
        return f"{time}  {one_line(message['from'])} → {one_line(message['to'] or 'all')}: {text}"
    subject = f"{event['subject']} {event['subject_id']}" if event["subject"] != "agent" else f"agent {event['role']}"
    move = f" {event['from'] or '·'} → {event['to']}" if event.get("to") else ""
    actor = f" by {event['actor']}" if event.get("actor") else ""
    reason = f": {event['reason']}" if event.get("reason") else ""
    what = f"{subject}{move} ({event['name']}{actor}){reason}"
    return f"{time}  {one_line(what)}"
