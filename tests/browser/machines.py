"""A server with its local daemon, harnesses of its own, and a second machine that a test may kill."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import sign_in_path
from tests.processes.acts import agent
from tests.processes.conftest import MakeProgram
from tests.processes.program import MANAGE, ROOT, Command, Program, is_alive, wait_until

QUICK = {"CHATROOM_RESTART_DELAY": "1", "CHATROOM_SWEEP_INTERVAL": "1", "CHATROOM_RECONNECT_WITHIN": "0.5"}
LAPTOP = "laptop-7"
SHELL_AGENT = ROOT / "tests" / "processes" / "shell_agent.sh"
HOLDING_AGENT = SHELL_AGENT.with_name("machine_agent.sh")
HARNESSES = """
[harnesses.shell]
command = ["/bin/sh", "{shell}", "user"]
version = ["echo", "shell 1.2"]

[harnesses.holder]
command = ["/bin/sh", "{holder}"]

[harnesses.talker]
command = ["{folder}/talker.sh"]

[harnesses.choosy]
command = ["/bin/sh", "{shell}", "user"]
models = ["small", "large"]

[harnesses.broken]
command = ["{folder}/broken.sh"]

[harnesses.missing]
command = ["no-such-program"]
"""
TALKER = """#!/bin/sh
printf '\\033[31mred\\033[0m <b>not bold</b>\\n'
(n=0; while :; do n=$((n + 1)); echo "line $n"; sleep 0.3; done) &
exec /bin/sh '{shell}' user
"""
WATCH = """([name, selector]) => {
  const seen = [];
  (window.watched ??= {})[name] = seen;
  const look = () => {
    const status = document.querySelector(selector)?.dataset.status;
    if (status !== seen.at(-1)?.[0]) seen.push([status, Date.now()]);
  };
  look();
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, attributes: true, attributeFilter: ["data-status"] });
}"""
BROKEN = """#!/bin/sh
echo 'looking for the licence'
echo 'no licence <found>' >&2
exit 3
"""


class Laptop:
    """A machine of its own on this host: another daemon, another home."""

    def __init__(self, program: Program) -> None:
        self.program, self.home, self.work = program, program.folder / "laptop", program.folder / "laptop-work"
        self.work.mkdir(parents=True)
        self.daemon: Command | None = None

    def start(self) -> Command:
        words = ["agent_daemon", "--server", self.program.url, "--home", str(self.home), "--name", LAPTOP, "--allow-dir", str(self.work)]
        harnesses = self.program.home / "daemon" / "harnesses.toml"
        self.daemon = self.program.start_raw(*words, settings={"CHATROOM_HARNESSES": str(harnesses)})
        self.daemon.wait_for_output("connected to")
        return self.daemon

    def stop(self) -> None:
        """With its agents, whatever a test has left of it."""
        if self.daemon is not None and is_alive(self.daemon.pid):
            os.kill(self.daemon.pid, 18)  # SIGCONT
        words = ["daemon_stop", "--server", self.program.url, "--home", str(self.home)]
        subprocess.run([*MANAGE, *words], env=self.program.environment, check=False, capture_output=True, timeout=30)


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def local_machine(program: Program) -> str:
    return str(next(found["name"] for found in machines(program) if found["name"] != LAPTOP))


def machines(program: Program) -> list[dict[str, object]]:
    found: list[dict[str, object]] = program.api("GET", "machines").json()["machines"]
    return found


def place(
    program: Program, room: str, harness: str, *, machine: str = "", role: str = "builder", folder: Path | None = None, model: str = ""
) -> None:
    where = {"kind": "remote", "machine": machine or local_machine(program), "harness": harness, "mode": "loop", "model": model}
    answer = program.api("PUT", f"rooms/{room}/agents/{role}", {**where, "directory": str(folder or program.home / "demo")})
    assert answer.status == 200, answer.text


def press(program: Program, room: str, act: str, *, role: str = "builder") -> None:
    answer = program.api("POST", f"rooms/{room}/agents/{role}/{act}", {})
    assert answer.status == 202, answer.text


def run_pid(program: Program, room: str, role: str = "builder") -> int:
    return wait_until(lambda: int((agent(program, room, role)["run"] or {}).get("pid") or 0), what=f"the PID of {role}")


@pytest.fixture(scope="module")
def server(make_program: MakeProgram) -> Iterator[Program]:
    program = make_program(**QUICK)
    program.start(daemon=True)
    program.folder.mkdir(parents=True, exist_ok=True)
    write_script(program.folder / "talker.sh", TALKER.format(shell=SHELL_AGENT))
    write_script(program.folder / "broken.sh", BROKEN)
    with (program.home / "daemon" / "harnesses.toml").open("a") as file:
        file.write(HARNESSES.format(shell=SHELL_AGENT, holder=HOLDING_AGENT, folder=program.folder))
    wait_until(lambda: "missing" in str(machines(program)), within=60, what="the machine offers the harnesses of the tests")
    yield program
    program.stop()


@pytest.fixture(scope="module")
def signed_in(server: Program, chromium: Browser) -> object:
    """The cookies of the owner, from the link that `up` printed."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url + sign_in_path(server))
    page.wait_for_selector(".top .menu")
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture(scope="module")
def laptop(server: Program) -> Iterator[Laptop]:
    laptop = Laptop(server)
    laptop.start()
    yield laptop
    laptop.stop()


Paste = Callable[[str], Command]


@pytest.fixture
def paste(server: Program) -> Iterator[Paste]:
    """A shell on another machine, in a checkout that is set up."""
    started: list[Command] = []

    def run(line: str) -> Command:
        first, _, rest = line.partition(" && ")
        assert first == "make setup"
        home = server.folder / f"stranger-{len(started)}"
        environment = {name: value for name, value in server.environment.items() if name in ("PATH", "LANG")}
        environment |= {"HOME": str(home), "CHATROOM_HARNESSES": str(server.home / "daemon" / "harnesses.toml")}
        rest = rest.replace(".venv/bin/chatroom", f"exec {Path(sys.executable).parent / 'chatroom'}")
        command = Command(["bash", "-c", rest], environment=environment, folder=server.folder, name=f"pasted-{len(started)}", cwd=ROOT)
        started.append(command)
        return command

    yield run
    for command in started:
        command.kill()


def watch(page: Page, role: str = "builder") -> None:
    """From now on the page notes each status that it shows of this agent."""
    page.evaluate(WATCH, [role, f"#agent-{role}"])


def watched(page: Page, role: str = "builder") -> list[tuple[str, int]]:
    """Each status that the page has shown, and since when, in ms since 1970."""
    return [(status, at) for status, at in page.evaluate("(name) => window.watched[name]", role)]


def statuses(page: Page, role: str = "builder") -> list[str]:
    return [status for status, _ in watched(page, role)]
