"""An agent's exits: what the server remembers, and what it cannot know yet."""

from machines.daemon.messages import AgentEntry
from machines.daemon.policy import Exit


class Past:
    def __init__(self) -> None:
        self.exits: list[Exit] = []
        self.unacknowledged: dict[int, Exit] = {}  # by run

    def add(self, exit_: Exit) -> None:
        self.exits.append(exit_)
        self.unacknowledged[exit_.run] = exit_

    def acknowledge(self, run: int) -> None:
        self.unacknowledged.pop(run, None)

    def take(self, entry: AgentEntry, *, now: float) -> None:
        """The server's record, and what it has not acknowledged yet; a person's new start forgets that too."""
        told = [past.at(now) for past in entry.history]
        runs = {one.run for one in told}
        unknown = [one for one in self.unacknowledged.values() if one.run not in runs]
        self.exits = told + [one for one in unknown if told or one.generation == entry.generation]
