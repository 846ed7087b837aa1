"""Machines and their agents in a real browser, on the started program with real daemons."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import OpenPage, is_same_page, wait_until_live
from tests.browser.machines import (
    LAPTOP,
    SHELL_AGENT,
    Laptop,
    Paste,
    laptop,
    local_machine,
    machines,
    paste,
    place,
    press,
    run_pid,
    server,
    signed_in,
    statuses,
    watch,
    watched,
    write_script,
)
from tests.processes.acts import agent, events, wait_for_status
from tests.processes.program import Program, is_alive, wait_until

__all__ = ["laptop", "paste", "server", "signed_in"]
PATIENT = 30_000


@pytest.fixture(autouse=True)
def quiet_room(server: Program, room: str) -> Iterator[None]:
    """What a test started ends with it: the machine is a small one."""
    yield
    for found in server.api("GET", f"rooms/{room}").json()["agents"]:
        if found["kind"] == "remote" and found["status"] != "offline":
            press(server, room, "stop", role=found["role"])


def expect_agent(page: Page, status: str, role: str = "builder") -> Locator:
    row = page.locator(f"#agent-{role}")
    expect(row).to_have_attribute("data-status", status, timeout=PATIENT)
    return row


def open_machines(open_page: OpenPage) -> Page:
    page = open_page("/machines/")
    wait_until_live(page)
    return page


def machine_row(page: Page, name: str = LAPTOP) -> Locator:
    return page.locator("#machines .machine").filter(has=page.get_by_role("heading", name=name, exact=True))


def expect_machine(page: Page, status: str, name: str = LAPTOP) -> None:
    expect(machine_row(page, name)).to_have_attribute("data-status", status, timeout=PATIENT)


@pytest.mark.scenario(36)
def test_a_machine_arrives_by_the_one_pasted_line(server: Program, open_page: OpenPage, paste: Paste) -> None:
    page = open_machines(open_page)
    page.get_by_label("Its name").fill("build-03")
    page.get_by_label("Where its agents may work").fill(str(server.folder / "stranger's work"))
    page.get_by_role("button", name="Add a machine").click()
    expect(page.locator(".enrolment")).to_contain_text("Waiting for the machine", timeout=PATIENT)
    daemon = paste(page.locator("#enrolment-command").inner_text())
    expect(page.locator(".enrolment.has-arrived")).to_contain_text("build-03 has arrived", timeout=PATIENT)
    expect_machine(page, "connected", "build-03")
    row = machine_row(page, "build-03")
    expect(row).to_contain_text(re.compile(r"shell\s+shell 1\.2"))
    expect(row).to_contain_text("program not found: no-such-program")
    expect(page.locator("#top-machines")).to_contain_text(f"{len(machines(server))} machines")
    row.get_by_role("button", name="Ping").click()
    expect(row).to_contain_text(re.compile(r"answered in \d+ ms"), timeout=PATIENT)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() in {0, 143}
    expect_machine(page, "disconnected", "build-03")
    row.get_by_text("Revoke…").click()
    row.get_by_role("button", name="Revoke build-03").click()
    expect(row).to_have_count(0, timeout=PATIENT)
    assert is_same_page(page)


@pytest.mark.scenario(38)
def test_a_daemon_that_falls_silent_is_seen_and_comes_back(
    server: Program, laptop: Laptop, room: str, page: Page, open_page: OpenPage
) -> None:
    place(server, room, "shell", machine=LAPTOP, folder=laptop.work)
    press(server, room, "start")
    expect_agent(page, "ready")
    fleet = open_machines(open_page)
    expect_machine(fleet, "connected")
    assert laptop.daemon
    laptop.daemon.signal(signal.SIGSTOP)
    expect_machine(fleet, "unresponsive")
    expect_machine(fleet, "disconnected")
    expect(fleet.locator("#nav-machines")).to_contain_text(re.compile(r"\d+/\d+"), timeout=PATIENT)
    expect(page.locator("#agent-builder")).to_contain_text(f"{LAPTOP} is away", timeout=PATIENT)
    expect(page.locator("#attention")).to_contain_text("DISCONNECTED", timeout=PATIENT)
    laptop.daemon.signal(signal.SIGCONT)
    expect_machine(fleet, "connected")
    expect(page.locator("#agent-builder")).not_to_contain_text("is away", timeout=PATIENT)
    assert is_same_page(page)
    assert is_same_page(fleet)


@pytest.mark.scenario(37)
def test_a_killed_daemon_is_seen_and_its_successor_adopts_the_same_process(
    server: Program, laptop: Laptop, room: str, page: Page, open_page: OpenPage
) -> None:
    place(server, room, "shell", machine=LAPTOP, folder=laptop.work)
    press(server, room, "start")
    expect_agent(page, "ready")
    pid = run_pid(server, room)
    fleet = open_machines(open_page)
    assert laptop.daemon
    laptop.daemon.signal(signal.SIGKILL)
    expect_machine(fleet, "disconnected")
    expect(page.locator("#agent-builder .unconfirmed")).to_contain_text(f"{LAPTOP} is away", timeout=PATIENT)
    assert is_alive(pid)
    laptop.start()
    expect_machine(fleet, "connected")
    expect(page.locator("#agent-builder .unconfirmed:visible")).to_have_count(0, timeout=PATIENT)
    expect(expect_agent(page, "ready")).to_contain_text(f"running, pid {pid}", timeout=PATIENT)


@pytest.mark.scenario(48)
@pytest.mark.scenario(71)
def test_a_start_in_one_browser_is_seen_in_two_and_after_a_reload(server: Program, room: str, page: Page, open_page: OpenPage) -> None:
    place(server, room, "shell")
    other = open_page(f"/rooms/{room}/")
    wait_until_live(other)
    watch(other)
    expect_agent(page, "offline").get_by_role("button", name="Start", exact=True).click()
    for one in (page, other):
        row = expect_agent(one, "ready")
        expect(row.locator("[data-command-state=completed]")).to_contain_text("Start", timeout=PATIENT)
        expect(row).to_contain_text(f"running, pid {run_pid(server, room)}", timeout=PATIENT)
        assert is_same_page(one)
    assert statuses(other)[:3] == ["offline", "restarting", "ready"]
    steps = [event["to"] for event in events(server, room, subject="run") if event["to"]]
    assert steps == ["validating", "ready", "preparing", "running"]
    other.reload()
    expect(other.locator("#agent-builder [data-command-state=completed]")).to_contain_text("Start")


@pytest.mark.scenario(71)
def test_stop_asks_and_its_outcome_stands_in_the_row(server: Program, room: str, page: Page, open_page: OpenPage) -> None:
    place(server, room, "shell")
    press(server, room, "start")
    row = expect_agent(page, "ready")
    other = open_page(f"/rooms/{room}/")
    pid = run_pid(server, room)
    row.get_by_text("Stop…").click()
    expect(row).to_contain_text("nothing starts it but a person")
    row.get_by_role("button", name="Stop builder").click()
    for one in (page, other):
        expect(expect_agent(one, "offline").locator("[data-command-state=completed]")).to_contain_text("Stop", timeout=PATIENT)
    assert not is_alive(pid)
    expect(row.get_by_role("button", name="Start", exact=True)).to_be_visible()


def test_start_stop_start_from_two_browsers_ends_as_the_last_press_said(
    server: Program, room: str, page: Page, open_page: OpenPage
) -> None:
    place(server, room, "shell")
    other = open_page(f"/rooms/{room}/")
    wait_until_live(other)
    mine, theirs = page.locator("#agent-builder"), other.locator("#agent-builder")
    expect_agent(page, "offline").get_by_role("button", name="Start", exact=True).click()
    theirs.get_by_text("Stop…").click()
    theirs.get_by_role("button", name="Stop builder").click()
    expect_agent(page, "offline")
    mine.get_by_role("button", name="Start", exact=True).click()
    for one in (page, other):
        row = expect_agent(one, "ready")
        expect(row.locator("[data-command-state=completed]").first).to_contain_text("Start", timeout=PATIENT)
        one.reload()
        expect(expect_agent(one, "ready")).to_contain_text(f"running, pid {run_pid(server, room)}", timeout=PATIENT)
    assert is_alive(run_pid(server, room))


@pytest.mark.scenario(7)
@pytest.mark.scenario(51)
def test_a_killed_agent_is_seen_restarting_and_ready_again(server: Program, room: str, page: Page) -> None:
    place(server, room, "shell")
    press(server, room, "start")
    expect_agent(page, "ready")
    pid = run_pid(server, room)
    watch(page)
    page.locator("#agent-builder").get_by_text("Stop…").click()
    killed = time.time()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "restarting" in statuses(page), what="the browser shows RESTARTING")
    seen = next(at for status, at in watched(page) if status == "restarting")
    print(f"kill to RESTARTING in the browser: {seen - killed * 1000:.0f} ms")
    expect_agent(page, "ready")
    wait_until(lambda: run_pid(server, room) not in {0, pid}, what="a new process")
    expect(page.locator("#agent-builder")).to_contain_text(f"running, pid {run_pid(server, room)}", timeout=PATIENT)
    # A question that a person has opened stays, though the button before it came and went.
    expect(page.locator("#agent-builder").get_by_role("button", name="Stop builder")).to_be_visible()
    assert is_same_page(page)


@pytest.mark.scenario(52)
@pytest.mark.scenario(73)
def test_an_agent_that_can_not_start_stands_on_top_until_it_is_mended(server: Program, room: str, page: Page) -> None:
    place(server, room, "broken")
    watch(page)
    expect_agent(page, "offline").get_by_role("button", name="Start", exact=True).click()
    expect_agent(page, "dead_failed_revive")
    assert "restarting" in statuses(page)
    card = page.locator("#attention-builder")
    expect(card).to_contain_text("DEAD (UNRECOVERABLE)")
    expect(card).to_contain_text("3 of 3 attempts failed; the last: ended with exit code 3")
    expect(card.locator(".output")).to_contain_text("looking for the licence\nno licence <found>")
    expect(card.locator("[data-command-state=failed]")).to_contain_text("Start")
    assert page.locator("#attention").bounding_box()["y"] < page.locator("#agents").bounding_box()["y"]  # type: ignore[index]
    assert len(events(server, room, name="message.post")) == 1, "people were told once"
    page.set_viewport_size({"width": 390, "height": 800})
    tab = page.locator(".tabs [data-pane-to=team]")
    assert tab.evaluate("tab => getComputedStyle(tab, '::after').width") == "7px", "the pane that is out of sight has a mark"
    page.set_viewport_size({"width": 1440, "height": 900})

    broken = server.folder / "broken.sh"
    before = broken.read_text()
    write_script(broken, f"#!/bin/sh\nexec /bin/sh '{SHELL_AGENT}' user\n")
    try:
        card.get_by_role("button", name="Restart").click()
        row = expect_agent(page, "ready")
    finally:
        write_script(broken, before)
    expect(row.locator("[data-command-state=completed]")).to_contain_text("Restart", timeout=PATIENT)
    expect(page.locator("#attention")).to_be_hidden()
    assert is_same_page(page)


def open_form(page: Page, role: str = "builder") -> Locator:
    page.locator(f"#agent-more-{role} > summary").click()
    page.locator(f"#agent-config-{role} > summary").click()
    form = page.locator(f"#configuration-{role}")
    expect(form).to_be_visible(timeout=PATIENT)
    return form


@pytest.mark.scenario(49)
def test_an_agent_is_configured_by_what_its_machine_offers(server: Program, room: str, page: Page, tmp_path: Path) -> None:
    form = open_form(page)
    form.get_by_text("Remote").click()
    form.locator("select[name=machine]").select_option(local_machine(server))
    form = page.locator("#configuration-builder")
    expect(form.locator("select[name=harness]").locator("option[value=shell]")).to_have_text("shell · shell 1.2", timeout=PATIENT)
    form.locator("select[name=harness]").select_option("shell")
    expect(form.locator("select[name=harness]")).to_have_value("shell", timeout=PATIENT)
    assert form.locator("select[name=harness]").locator("option[value=missing]").is_disabled()

    def save(directory: Path) -> None:
        form.get_by_label("Directory").fill(str(directory))
        form.get_by_role("button", name="Save").click()

    save(tmp_path)
    expect(form.locator("output .error")).to_contain_text(f"allows {server.home / 'demo'}", timeout=PATIENT)
    save(server.home / "demo" / ".." / "log")
    expect(form.locator("output .error")).to_contain_text(f"allows {server.home / 'demo'}", timeout=PATIENT)
    save(server.home / "demo")
    expect(form.locator("output")).to_contain_text("Saved: builder lives on", timeout=PATIENT)
    expect(page.locator("#agent-builder .agent-home")).to_contain_text("shell", timeout=PATIENT)
    page.locator("#agent-builder").get_by_role("button", name="Start", exact=True).click()
    expect_agent(page, "ready")
    assert is_same_page(page)


@pytest.mark.scenario(49)
def test_what_is_typed_while_the_offer_is_on_its_way_is_kept(server: Program, laptop: Laptop, room: str, page: Page) -> None:
    form, held = open_form(page), list[Route]()
    form.get_by_text("Remote").click()
    page.route(re.compile(r"/configuration/\?"), lambda route: held.append(route))  # noqa: PLW0108  (playwright marks its handlers)
    form.locator("select[name=machine]").select_option(LAPTOP)
    form.get_by_label("Directory").fill(str(laptop.work))
    expect(form.get_by_role("button", name="Save")).to_be_disabled()
    held[0].continue_()
    page.unroute(re.compile(r"/configuration/\?"))
    form.locator("select[name=harness]").select_option("shell")
    expect(form.get_by_text(f"In or below {laptop.work}")).to_be_visible()
    expect(form.get_by_role("button", name="Save")).to_be_enabled()
    expect(form.get_by_label("Directory")).to_have_value(str(laptop.work))
    form.get_by_role("button", name="Save").click()
    expect(form.locator("output")).to_contain_text(f"Saved: builder lives on {LAPTOP}", timeout=PATIENT)
    stored = agent(server, room)
    assert (stored["machine"], stored["harness"], stored["directory"]) == (LAPTOP, "shell", str(laptop.work))
    assert is_same_page(page)


@pytest.mark.scenario(49)
def test_an_offer_that_can_not_be_fetched_is_said_and_loses_nothing(laptop: Laptop, room: str, page: Page) -> None:
    form = open_form(page)
    form.get_by_text("Remote").click()
    form.get_by_label("Directory").fill("/somewhere")
    page.route(re.compile(r"/configuration/\?"), lambda route: route.fulfill(status=500, body="<!doctype html><title>Broken</title>"))
    form.locator("select[name=machine]").select_option(LAPTOP)
    expect(form.locator("output .error")).to_contain_text("The server refused this (500)")
    expect(form.locator("select[name=machine]")).to_have_value(LAPTOP)
    expect(form.get_by_label("Directory")).to_have_value("/somewhere")
    expect(form.get_by_role("button", name="Save")).to_be_enabled()


def press_start_and_read_why(page: Page, says: str) -> None:
    expect_agent(page, "offline").get_by_role("button", name="Start", exact=True).click()
    expect_agent(page, "dead_failed_revive")
    card = page.locator("#attention-builder")
    expect(card).to_contain_text(says)
    expect(card.locator("[data-command-state=failed]")).to_be_visible()


@pytest.mark.scenario(49)
@pytest.mark.parametrize(("harness", "folder", "says"), [("missing", "", "program not found"), ("shell", "nowhere", "nowhere")])
def test_what_fails_in_validation_says_why_where_the_button_was(
    server: Program, room: str, page: Page, harness: str, folder: str, says: str
) -> None:
    place(server, room, harness, folder=server.home / "demo" / folder)
    press_start_and_read_why(page, says)


@pytest.mark.scenario(49)
def test_a_link_that_leads_out_of_what_is_allowed_is_refused_where_the_button_was(
    server: Program, room: str, page: Page, tmp_path: Path
) -> None:
    link = server.home / "demo" / f"link-{room}"
    link.symlink_to(tmp_path)
    place(server, room, "shell", folder=link)
    press_start_and_read_why(page, f"leads to {tmp_path}, which is outside of what this machine allows")


@pytest.mark.scenario(49)
def test_a_model_that_its_machine_does_not_have_any_more_is_said_where_the_button_was(server: Program, room: str, page: Page) -> None:
    place(server, room, "choosy", model="large")
    harnesses = server.home / "daemon" / "harnesses.toml"
    before = harnesses.read_text()
    harnesses.write_text(before.replace('["small", "large"]', '["small"]'))
    try:
        press_start_and_read_why(page, "harness choosy has no model large; it has small")
    finally:
        harnesses.write_text(before)


@pytest.mark.scenario(72)
def test_a_browser_that_was_offline_shows_how_its_agents_are_now(server: Program, room: str, page: Page) -> None:
    place(server, room, "shell")
    press(server, room, "start")
    expect_agent(page, "ready")
    page.context.set_offline(True)
    expect(page.locator("#live")).to_contain_text("reconnecting", timeout=PATIENT)
    press(server, room, "stop")
    wait_for_status(server, room, "builder", "offline", within=30)
    assert page.locator("#agent-builder").get_attribute("data-status") == "ready"
    page.context.set_offline(False)
    row = expect_agent(page, "offline")
    expect(row.locator("[data-command-state=completed]")).to_contain_text("Stop", timeout=PATIENT)
    expect(row).to_contain_text("no process")
    assert is_same_page(page)


def test_the_output_of_an_agent_is_read_live_and_is_text(server: Program, room: str, page: Page) -> None:
    place(server, room, "talker")
    press(server, room, "start")
    expect_agent(page, "ready").get_by_role("link", name="Log").click()
    sheet = page.locator("#log-sheet")
    expect(sheet).to_contain_text("red <b>not bold</b>", timeout=PATIENT)
    assert "\x1b" not in sheet.inner_text()
    assert sheet.locator("b").count() == 0
    first = sheet.locator("pre").inner_text()
    wait_until(lambda: len(sheet.locator("pre").inner_text()) > len(first), what="the output goes on")
    assert re.findall(r"line (\d+)", sheet.inner_text())[:3] == ["1", "2", "3"]
    press(server, room, "restart")
    expect(sheet.locator(".log-run")).to_have_count(2, timeout=PATIENT)
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()
    assert is_same_page(page)


@pytest.mark.parametrize("width", [1440, 900, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_machines_is_not_wider_than_the_screen(room: str, open_page: OpenPage, width: int, scheme: str) -> None:
    page = open_page("/machines/", viewport={"width": width, "height": 800}, scheme=scheme)
    wait_until_live(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
