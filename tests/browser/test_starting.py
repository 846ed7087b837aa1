"""Many presses at one instant, in two real browsers and by five messages: one process."""

import threading
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, is_same_page, wait_until_live
from tests.browser.machines import SHELL_AGENT, place, press, run_pid, server, signed_in, statuses, watch, write_script
from tests.processes.acts import events, messages, send
from tests.processes.machines import programs_of
from tests.processes.program import Program, wait_until

__all__ = ["server", "signed_in"]
PATIENT = 30_000
SOON = 1.5
PRESSED = "**/agents/builder/run/start/"
PRESS_AT = """(at) => {
  const button = [...document.querySelectorAll("#agent-builder button")].find((found) => found.textContent.trim() === "Start");
  setTimeout(() => button.click(), at - Date.now());
}"""


@pytest.mark.scenario(50)
def test_start_in_two_browsers_and_five_messages_at_the_same_instant_start_one_process(
    server: Program, room: str, page: Page, open_page: OpenPage, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    write_script(server.folder / "talker.sh", f"#!/bin/sh\necho $$ >>'{started}'\nexec /bin/sh '{SHELL_AGENT}' user\n")
    place(server, room, "talker")
    other = open_page(f"/rooms/{room}/")
    wait_until_live(other)
    for one in (page, other):
        expect(one.locator("#agent-builder").get_by_role("button", name="Start", exact=True)).to_be_visible(timeout=PATIENT)
        watch(one)
    at = time.time() + SOON
    threads = [threading.Thread(target=send_at, args=(server, room, number, at)) for number in range(5)]
    with page.expect_request(PRESSED), other.expect_request(PRESSED):
        for one in (page, other):
            one.evaluate(PRESS_AT, at * 1000)
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()

    wait_until(lambda: len(messages(server, room, "result")) == 5, within=60, what="all five are answered")
    for one in (page, other):
        row = one.locator("#agent-builder")
        expect(row).to_have_attribute("data-status", "ready", timeout=PATIENT)
        expect(row).to_contain_text(f"running, pid {run_pid(server, room)}", timeout=PATIENT)
        assert statuses(one)[:2] == ["offline", "restarting"]
        assert is_same_page(one)
    assert len(started.read_text().split()) == 1, "programs that were ever started"
    assert programs_of(server, room) == [run_pid(server, room)]
    assert len(events(server, room, subject="run", to="preparing")) == 1
    press(server, room, "stop")


def send_at(server: Program, room: str, number: int, at: float) -> None:
    wait_until(lambda: time.time() >= at, within=60)
    send(server, room, f"all at once {number}")
