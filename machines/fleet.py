"""Machines as people see them: the page of machines, and their number in the corner of every page."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.db.models import Max, Q, QuerySet
from django.utils.timezone import now

from agents.models import Agent, AgentStatus
from agents.models.agent import LIVE
from chatroom.feed import Fragment
from chatroom.models import Membership, Token, TokenKind
from chatroom.nav import Listing
from machines.hints import topic_of, topic_of_fleet
from machines.models import Act, Command, CommandState, Machine, MachineStatus, Placement
from machines.services.registration import ENROLMENT_LIFETIME

# The look of each status, which is shared with the agents' ones: a colour and a shape.
LOOKS = {
    MachineStatus.CONNECTED: ("ready", "disc"),
    MachineStatus.UNRESPONSIVE: ("restarting", "ring"),
    MachineStatus.DISCONNECTED: ("dead", "cross"),
}
NEVER_CAME = ("offline", "hollow")


@dataclass
class MachineRow:
    """A machine as one person sees it: with the agents of their own rooms, or with all if it is theirs."""

    machine: Machine
    agents: list[Agent] = field(default_factory=list)
    is_mine: bool = False
    ping: Command | None = None

    # What an agent there does by itself; one that is offline or dead is so, whether its machine is away or not.
    DOUBTED: ClassVar = [*LIVE, AgentStatus.RESTARTING]

    @property
    def look(self) -> str:
        return self.looks[0]

    @property
    def shape(self) -> str:
        return self.looks[1]

    @property
    def looks(self) -> tuple[str, str]:
        return LOOKS[MachineStatus(self.machine.status)] if self.machine.last_seen_at else NEVER_CAME

    @property
    def word(self) -> str:
        return self.machine.status.upper() if self.machine.last_seen_at else "NEVER CAME"

    @property
    def harnesses(self) -> list[dict[str, Any]]:
        return shown_harnesses(self.machine)

    @property
    def carried(self) -> str:
        """`builder and 2 more live`"""
        first, others = self.agents[0].role, len(self.agents) - 1
        return f"{first} and {others} more live" if others else f"{first} lives"

    @property
    def is_pinging(self) -> bool:
        return self.ping is not None and self.ping.state in (CommandState.PENDING, CommandState.DISPATCHED)

    @property
    def ping_took(self) -> int | None:
        """Milliseconds, from the press to the answer, if there was one."""
        if self.ping is None or self.ping.ended_at is None or self.ping.state != CommandState.COMPLETED:
            return None
        return round((self.ping.ended_at - self.ping.created_at) / timedelta(milliseconds=1))


@dataclass
class Fleet:
    """How many machines a person has, and how many of them are there."""

    machine_ids: list[int] = field(default_factory=list)
    connected: int = 0

    @property
    def total(self) -> int:
        return len(self.machine_ids)

    @property
    def away(self) -> int:
        return self.total - self.connected

    @property
    def words(self) -> str:
        named = f"{self.total} machine{'' if self.total == 1 else 's'}"
        return f"{self.connected} of {named}" if self.away else named


def shown_harnesses(machine: Machine) -> list[dict[str, Any]]:
    """The name stands before the error already."""
    return [{**found, "error": found.get("error", "").removeprefix(f"harness {found['name']}: ")} for found in machine.harnesses]


def rooms_of(user_ids: Iterable[int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {user_id: set() for user_id in user_ids}
    for user_id, room_id in Membership.objects.filter(user__in=found, user__is_active=True).values_list("user_id", "room_id"):
        found[user_id].add(room_id)
    return found


def visible_to_any(rooms: dict[int, set[int]]) -> QuerySet[Machine]:
    """The machines of these people, and those that agents of their rooms live on."""
    placed = Placement.objects.filter(agent__room__in=set().union(*rooms.values())).values("machine")
    return Machine.objects.filter(Q(owner__in=rooms) | Q(pk__in=placed), revoked_at=None).order_by("name", "pk")


def see_machines(user_ids: Iterable[int]) -> dict[int, list[MachineRow]]:
    """What each of these people may see, in the order of names: a fixed number of queries."""
    rooms = rooms_of(user_ids)
    machines = list(visible_to_any(rooms).select_related("owner"))
    placed: dict[int, list[Agent]] = defaultdict(list)
    placements = Placement.objects.filter(machine__in=machines).select_related("agent__room").order_by("agent__room__name", "agent_id")
    for placement in placements:
        placed[placement.machine_id].append(placement.agent)
    pings = newest_pings(machine.pk for machine in machines)
    seen: dict[int, list[MachineRow]] = {user_id: [] for user_id in rooms}
    for user_id, rows in seen.items():
        for machine in machines:
            is_mine = machine.owner_id == user_id
            agents = [agent for agent in placed[machine.pk] if is_mine or agent.room_id in rooms[user_id]]
            if is_mine or agents:
                rows.append(MachineRow(machine, agents, is_mine=is_mine, ping=pings.get(machine.pk)))
    return seen


def newest_pings(machine_ids: Iterable[int]) -> dict[int, Command]:
    pings = Command.objects.filter(machine__in=list(machine_ids), act=Act.PING).order_by()
    newest = pings.values("machine").annotate(last=Max("pk")).values("last")
    return {command.machine_id: command for command in Command.objects.filter(pk__in=newest)}


def count_fleets(user_ids: Iterable[int]) -> dict[int, Fleet]:
    rooms = rooms_of(user_ids)
    seen_from: dict[int, set[int]] = defaultdict(set)
    machines = visible_to_any(rooms)
    for machine_id, room_id in Placement.objects.filter(machine__in=machines).order_by().values_list("machine", "agent__room").distinct():
        seen_from[machine_id].add(room_id)
    fleets = {user_id: Fleet() for user_id in rooms}
    for machine_id, owner_id, status in machines.values_list("pk", "owner", "status"):
        for user_id, fleet in fleets.items():
            if owner_id == user_id or seen_from[machine_id] & rooms[user_id]:
                fleet.machine_ids.append(machine_id)
                fleet.connected += status == MachineStatus.CONNECTED
    return fleets


def row_fragment(row: MachineRow) -> Fragment:
    return Fragment(f"machine-{row.machine.pk}", "machines/_machine.html", {"row": row})


class MachinesList:
    """For the page of machines."""

    name, is_everywhere = "machines", False
    wrapper = '<ul id="machines" class="card machines" hx-swap-oob="morph">{}</ul>'

    def read(self, user_ids: set[int]) -> Listing:
        found = Listing(topics=topics_of_people(user_ids))
        for user_id, rows in see_machines(user_ids).items():
            keys: list[Hashable] = [(user_id, row.machine.pk) for row in rows]
            found.of_user[user_id] = keys
            found.rows |= {key: row_fragment(row) for key, row in zip(keys, rows, strict=True)}
            found.topics |= topics_of_rows(rows)
        return found


class FleetList:
    """On every page: how many machines there are, in the list on the left and at the top."""

    name, is_everywhere, wrapper = "fleet", True, ""

    def read(self, user_ids: set[int]) -> Listing:
        found = Listing(topics=topics_of_people(user_ids))
        for user_id, fleet in count_fleets(user_ids).items():
            for place in ("nav", "top"):
                found.rows[user_id, place] = Fragment(f"{place}-machines", f"machines/_{place}.html", {"fleet": fleet})
            found.of_user[user_id] = [(user_id, "nav"), (user_id, "top")]
            found.topics |= {topic_of(machine_id) for machine_id in fleet.machine_ids}
        return found


def topics_of_people(user_ids: Iterable[int]) -> set[int | str]:
    return {topic_of_fleet(user_id) for user_id in user_ids}


def topics_of_rows(rows: Iterable[MachineRow]) -> set[int | str]:
    """A machine's own, and the rooms' of its agents, whose status stands in its row."""
    topics: set[int | str] = set()
    for row in rows:
        topics |= {topic_of(row.machine.pk), *(agent.room_id for agent in row.agents)}
    return topics


@dataclass
class Enrolment:
    """Add a machine was pressed: who came of it?"""

    id: int
    expires_at: datetime | None
    machine: Machine | None = None

    @property
    def has_arrived(self) -> bool:
        return self.machine is not None and self.machine.status == MachineStatus.CONNECTED

    @property
    def is_over(self) -> bool:
        return self.machine is None and self.expires_at is not None and self.expires_at < now()


class EnrolmentsList:
    """For the page of machines: turns green by itself when the machine arrives."""

    name, is_everywhere, wrapper = "enrolments", False, ""

    def read(self, user_ids: set[int]) -> Listing:
        found = Listing(topics=topics_of_people(user_ids), of_user={user_id: [] for user_id in user_ids})
        recent = Token.objects.filter(kind=TokenKind.ENROLMENT, user__in=user_ids, expires_at__gt=now() - ENROLMENT_LIFETIME)
        tokens = list(recent.values_list("pk", "user_id", "expires_at", "subject_id"))
        machines = Machine.objects.in_bulk([machine_id for *_, machine_id in tokens if machine_id])
        for token_id, user_id, expires_at, machine_id in tokens:
            enrolment = Enrolment(token_id, expires_at, machines.get(machine_id or 0))
            found.rows[token_id] = Fragment(f"enrolment-{token_id}", "machines/_enrolment_state.html", {"enrolment": enrolment})
            found.of_user[user_id].append(token_id)
            found.topics |= {topic_of(enrolment.machine.pk)} if enrolment.machine else set()
        return found


def read_fleet(user: Any) -> Fleet:
    """Nobody's is empty."""
    return count_fleets([user.pk])[user.pk] if user is not None and user.is_authenticated else Fleet()
