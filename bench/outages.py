"""`python -m bench.outages`: how soon a real browser shows that a machine is away, and that all is true again, with users' own timers.

A second daemon on this host, with two agents in a room of its own, is killed and started again, then cut off (SIGSTOP of the daemon, which
answers nothing and closes nothing) and let go on. Exit 1 when something took longer than promised, or an agent was restarted.
"""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import HEAD, line
from bench.kills import DaemonServer, api, open_page, read_options, wait_until
from bench.server import MANAGE, ROOT

NAME, ROLES = "laptop-7", ("builder", "reviewer")
KILLED, RETURNED, CUT_OFF, BACK = (
    "daemon killed → DISCONNECTED",
    "daemon started → all true",
    "machine cut off → DISCONNECTED",
    "goes on → all true",
)
PROMISED = {KILLED: 15.0, RETURNED: 30.0, CUT_OFF: 25.0, BACK: 30.0}
WATCH = """(name) => {
  window.seen = {};
  const look = () => {
    const row = [...document.querySelectorAll("#machines .machine")].find((one) => one.querySelector("h3").textContent === name);
    const status = row?.dataset.status;
    if (status !== window.now) { window.now = status; window.seen[status] = Date.now(); }
  };
  look();
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-status"] });
}"""
DOUBTS = """() => ({
  doubted: [...document.querySelectorAll("#agents .unconfirmed")].filter((one) => !one.hidden).length,
  statuses: [...document.querySelectorAll("#agents .agent")].map((one) => one.dataset.status),
})"""


@dataclass
class Outages:
    server: DaemonServer
    fleet: Page
    room: Page
    daemon: subprocess.Popen[bytes] | None = None
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def start_daemon(self) -> None:
        home = self.server.home.parent / "laptop"
        words = [
            "agent_daemon",
            "--server",
            self.server.url,
            "--home",
            str(home),
            "--name",
            NAME,
            "--allow-dir",
            str(self.server.home / "demo"),
        ]
        environment = self.server.environment | {"CHATROOM_HARNESSES": str(self.server.home / "daemon" / "harnesses.toml")}
        with (home.parent / "laptop.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [*MANAGE, *words], env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def send(self, number: signal.Signals) -> float:
        assert self.daemon
        os.kill(self.daemon.pid, number)
        return time.time()

    def pids(self) -> list[int]:
        agents: list[dict[str, Any]] = api(self.server, "GET", "rooms/away")["agents"]
        return [int((agent["run"] or {}).get("pid") or 0) if agent["status"] == "ready" else 0 for agent in agents]

    def move_in(self) -> None:
        api(self.server, "POST", "rooms", {"name": "Away", "team": "pair"})
        for role in ROLES:
            place = {
                "kind": "remote",
                "machine": NAME,
                "harness": f"demo-{role}",
                "directory": str(self.server.home / "demo"),
                "mode": "loop",
            }
            api(self.server, "PUT", f"rooms/away/agents/{role}", place)
            api(self.server, "POST", f"rooms/away/agents/{role}/start")
        wait_until(lambda: all(self.pids()), what="the agents of the second machine are ready")

    def go_away(self, what: str, number: signal.Signals) -> None:
        self.fleet.evaluate("window.seen = {}")
        began = self.send(number)
        if number == signal.SIGKILL:
            assert self.daemon
            self.daemon.wait()
        seen = wait_until(lambda: self.fleet.evaluate("window.seen.disconnected"), what="DISCONNECTED is in the browser")
        self.times[what].append(seen / 1000 - began)
        wait_until(lambda: self.room.evaluate(DOUBTS)["doubted"] == len(ROLES), what="both agents are shown as unconfirmed")

    def come_back(self, what: str, began: float) -> None:
        wait_until(lambda: self.fleet.evaluate("window.now") == "connected" and self.is_true(), what="everything is true again")
        self.times[what].append(time.time() - began)

    def is_true(self) -> bool:
        found = self.room.evaluate(DOUBTS)
        return found == {"doubted": 0, "statuses": ["ready"] * len(ROLES)}

    def run(self, times: int) -> None:
        for _ in range(times):
            self.go_away(KILLED, signal.SIGKILL)
            began = time.time()
            self.start_daemon()
            self.come_back(RETURNED, began)
            self.go_away(CUT_OFF, signal.SIGSTOP)
            self.come_back(BACK, self.send(signal.SIGCONT))


def main() -> int:
    options = read_options("outages", __doc__, times=5)
    with DaemonServer(options.stack) as server, open_page(server) as room:
        fleet = room.context.new_page()
        fleet.goto(f"{server.url}/machines/")
        fleet.wait_for_selector("#live[data-state=live]")
        fleet.evaluate(WATCH, NAME)
        outages = Outages(server, fleet, room)
        outages.start_daemon()
        wait_until(lambda: fleet.evaluate("window.now") == "connected", what="the second machine has arrived")
        outages.move_in()
        room.goto(f"{server.url}/rooms/away/")
        wait_until(outages.is_true, what="the room shows its agents")
        before = outages.pids()
        outages.run(options.times)
        kept = outages.pids() == before
        outages.send(signal.SIGTERM)
        assert outages.daemon
        outages.daemon.wait()
    return report(outages.times, kept=kept)


def report(times: dict[str, list[float]], *, kept: bool) -> int:
    print(f"\n{HEAD}")
    for what, seconds in times.items():
        print(f"{line(what, seconds)}   promised: {PROMISED[what]:.0f} s")
    late = [what for what, seconds in times.items() if max(seconds) > PROMISED[what]]
    print("the same processes before and after" if kept else "an agent was restarted needlessly")
    print(f"too late: {', '.join(late)}" if late else "nothing was later than promised")
    return 1 if late or not kept else 0


if __name__ == "__main__":
    sys.exit(main())
