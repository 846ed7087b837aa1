from __future__ import annotations

from typing import TYPE_CHECKING

from chatroom.client.errors import NOT_ALLOWED, ClientError
from chatroom.client.output import emit

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def arguments(parser: ArgumentParser) -> None:
    """Nothing beyond what all commands take."""


def run(args: Namespace) -> int:
    from chatroom.client.credentials import find_place, forget_token, require_token
    from chatroom.client.server import Server, default_patience

    place = find_place(args)
    require_token(place)
    if place.source == "owner":
        raise ClientError(f"not signed in to {place.url}: commands on the server's own host use its owner's token", exit_code=NOT_ALLOWED)
    try:
        Server(place.url, place.token, patience=default_patience()).post("logout")
    except ClientError as error:
        if error.code != "not_signed_in":  # revoked before: what is left is to forget it
            raise
    if place.source == "file":
        forget_token(place.url)
    emit({"server": place.url}, f"signed out of {place.url}", as_json=args.json)
    return 0
