"""What people do seldom: they sign in on terminals, invite each other, make rooms, add and revoke machines."""

import json
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import User

from chatroom import api
from chatroom.db import in_db
from chatroom.errors import ChatroomError
from chatroom.services.setup import ensure_first_room, ensure_owner
from chatroom.services.tokens import approve_device_grant, deny_device_grant, issue_sign_in_link, redeem_sign_in_link
from machines import api as machines_api

from .network import Lost
from .server import request

if TYPE_CHECKING:
    from .world import World

ODD_NAMES = ["", "demo", "Demo", "7 of 9", "x" * 121, "tab\there"]
ODD_TEAMS: list[Any] = ["solo", "pair", "a,b", "A", "user", "", "a,a"]


class Administration:
    def __init__(self, world: "World") -> None:
        self.world = world

    async def call(self, act: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """One trip to the server, tried once; None when nothing came of it."""

        async def endpoint() -> Any:
            found = await act(*arguments, **named)
            return found if hasattr(found, "content") else SimpleNamespace(content=json.dumps(found, default=str).encode())

        try:
            return await self.world.web.http(self.world.actor.laptop, endpoint)
        except (ChatroomError, Lost):
            return None

    def asked(self, name: str) -> Any:
        return request(self.world.actor.secrets[name])

    async def anything(self, rng: Random) -> None:
        acts = [self.sign_in_terminal, self.open_link, self.invite, self.make_room, self.add_machine, self.revoke, self.set_up]
        await rng.choice(acts)(rng)

    async def sign_in_terminal(self, rng: Random) -> None:
        """A code is approved or denied, once; the terminal gets its token once."""
        grant = await self.call(api.start_sign_in, request(""), api.Device(client="a terminal"))
        if grant is None:
            return
        user = User.objects.get(username="bob")
        code, asked = str(grant["user_code"]), api.DeviceCode(device_code=grant["device_code"])
        await self.call(api.finish_sign_in, request(""), asked)
        for decide in rng.choice([[approve_device_grant], [deny_device_grant], [approve_device_grant, deny_device_grant], []]):
            await self.call(in_db, decide, code if rng.random() < 0.9 else "BBBB-BBBB", user=user)
        tokens = [await self.call(api.finish_sign_in, request(""), asked) for _ in range(2)]
        if all(tokens):
            self.world.checker.violated("11: a code is good for one token", "the same code gave two")
        for token in filter(None, tokens):
            await self.call(api.logout, request(token["token"]))

    async def open_link(self, rng: Random) -> None:
        user = User.objects.get(username="vera")
        path = await self.call(in_db, issue_sign_in_link, user)
        if isinstance(path, str):
            secret = path.strip("/").rpartition("/")[2]
            who = [await self.call(in_db, redeem_sign_in_link, secret) for _ in range(2)]
            if all(who):
                self.world.checker.violated("11: a link signs in once", "the same link worked twice")

    async def invite(self, rng: Random) -> None:
        body = api.NewMember(username=rng.choice(["vera", "bob", "nobody", "alice"]), role=rng.choice(["viewer", "member"]))
        if body.username != "bob" or body.role == "member":  # bob goes on pressing buttons
            role = "viewer" if body.username == "vera" else body.role
            await self.call(api.new_member, self.asked("alice"), self.world.pick_room(rng), body.model_copy(update={"role": role}))

    async def make_room(self, rng: Random) -> None:
        body = api.NewRoom(name=rng.choice(ODD_NAMES), team=rng.choice(ODD_TEAMS))
        await self.call(api.new_room, self.asked("charlie"), body)

    async def add_machine(self, rng: Random) -> None:
        body = machines_api.NewMachine(name=rng.choice(["m0", "spare", "no spaces"]), platform="simulated")
        await self.call(machines_api.new_machine, self.asked("alice"), body)
        enrolment = await self.call(machines_api.new_enrolment, self.asked("alice"))
        for _ in range(2 if enrolment else 0):
            await self.call(machines_api.new_machine, request(enrolment["token"]), body)

    async def revoke(self, rng: Random) -> None:
        """Refused for a machine that agents live on, as all of the simulated ones may be."""
        await self.call(machines_api.revoke, self.asked("alice"), rng.choice(["spare", "nowhere"]))

    async def set_up(self, rng: Random) -> None:
        """What each start of the program does."""
        owner = await self.call(in_db, ensure_owner)
        if owner is not None:
            await self.call(in_db, ensure_first_room, User.objects.filter(is_superuser=True).first())
