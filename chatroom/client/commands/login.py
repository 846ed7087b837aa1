from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from chatroom.client.errors import NOT_ALLOWED, ClientError
from chatroom.client.output import emit, say

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from chatroom.client.server import Server

ENDED = {"expired_token": "the code has expired: sign in again", "access_denied": "the request was denied in the browser"}


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", help="how this machine is called in the list of your sign-ins")


def run(args: Namespace) -> int:
    import socket

    from chatroom.client.credentials import find_place, store_token
    from chatroom.client.server import Server, default_patience

    url = find_place(args).url
    server = Server(url, "", patience=default_patience())
    grant = server.post("device", {"client": args.name or socket.gethostname()})
    say(f"Open   {grant['verification_url_complete']}")
    say(f"and compare the code there with   {grant['user_code']}")
    answer = poll(server, grant)
    path = store_token(url, token=answer["token"], name=answer["name"])
    emit({"server": url, "name": answer["name"]}, f"signed in to {url} as {answer['name']} (kept in {path})", as_json=args.json)
    return 0


def poll(server: Server, grant: dict[str, Any]) -> dict[str, Any]:
    interval, until = float(grant["interval"]), time.monotonic() + float(grant["expires_in"])
    while time.monotonic() < until:
        time.sleep(interval)
        try:
            return server.post("device/token", {"device_code": grant["device_code"]})
        except ClientError as error:
            if error.code == "slow_down":
                interval += 5
            elif error.code in ENDED:
                raise ClientError(ENDED[error.code], exit_code=NOT_ALLOWED, code=error.code) from None
            elif error.code != "authorization_pending":
                raise
    raise ClientError(ENDED["expired_token"], exit_code=NOT_ALLOWED, code="expired_token")
