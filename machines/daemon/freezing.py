"""Is a process stopped (SIGSTOP)? Warned about first, then reported as frozen, then as going on."""

from typing import Literal

WARN_AFTER, FROZEN_AFTER = 5.0, 10.0
Change = Literal["stopped", "frozen", "continued"]


class FreezeWatch:
    """Fed with one look a second. A gap between two looks means that we were stopped ourselves: then counting begins anew."""

    def __init__(self, *, warn_after: float = WARN_AFTER, frozen_after: float = FROZEN_AFTER) -> None:
        self.warn_after, self.frozen_after = warn_after, frozen_after
        self.since: float | None = None
        self.last_look = 0.0
        self.said: Change | None = None

    def look(self, *, is_stopped: bool, now: float) -> Change | None:
        gap, self.last_look = now - self.last_look, now
        if not is_stopped:
            had_said, self.since, self.said = self.said, None, None
            return "continued" if had_said else None
        if self.since is None or (gap > self.warn_after and self.said is None):
            self.since = now
        return self.say_once(now - self.since)

    def say_once(self, seconds: float) -> Change | None:
        if seconds >= self.frozen_after and self.said != "frozen":
            self.said = "frozen"
            return "frozen"
        if seconds >= self.warn_after and self.said is None:
            self.said = "stopped"
            return "stopped"
        return None

    def say_again(self) -> None:
        """To a server that may have lost touch meanwhile: what was said of a process that is frozen still is true."""
        if self.said == "frozen":
            self.said = "stopped"

    def seconds(self, change: Change) -> float:
        return {"stopped": self.warn_after, "frozen": self.frozen_after, "continued": 0.0}[change]
