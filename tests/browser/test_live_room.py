"""The room's page in a real browser: always true, never reloaded."""

import json
import os
import re
import signal
from datetime import datetime

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, is_same_page, wait_until_live
from tests.processes.acts import act, claim_of, events, send, start_waiting, take, wait_until_waiting
from tests.processes.program import Program, wait_until

# "Within 1 s" is measured where it is promised; here a busy machine may take its time.
PATIENT = 20_000
WATCH = """(pattern) => {
  window.seen = {};
  new MutationObserver(() => {
    for (const [, name] of document.body.innerText.matchAll(new RegExp(pattern, "g"))) window.seen[name] ??= Date.now();
  }).observe(document.body, { childList: true, subtree: true, characterData: true });
}"""


def row(page: Page, role: str = "builder") -> str:
    return page.locator(f"#agent-{role}").inner_text()


def expect_agent(page: Page, status: str, role: str = "builder") -> None:
    expect(page.locator(f"#agent-{role}")).to_have_attribute("data-status", status, timeout=PATIENT)


@pytest.mark.scenario(71)
def test_a_chain_is_watched_from_the_message_to_the_end(server: Program, room: str, page: Page) -> None:
    builder = start_waiting(server, room, "builder")
    expect_agent(page, "ready")
    task = send(server, room, "Rename `cart.total`")
    expect(page.locator("#messages")).to_contain_text("Rename cart.total", timeout=PATIENT)
    expect_agent(page, "working")
    assert builder.wait() == 0
    claim = claim_of(builder)
    act(server, room, claim, "start")
    expect(page.locator(f"#task-{task}")).to_have_attribute("data-status", "in_progress", timeout=PATIENT)
    act(server, room, claim, "progress", text="half way there")
    expect(page.locator("#messages")).to_contain_text("half way there", timeout=PATIENT)
    act(server, room, claim, "handoff", next_role="reviewer", text="please look")
    expect(page.locator(".step")).to_have_count(2, timeout=PATIENT)
    expect_agent(page, "ready")
    expect(page.locator("#agent-builder")).to_contain_text("not waiting yet")
    claim = take(server, room, "reviewer")
    expect_agent(page, "working", "reviewer")
    act(server, room, claim, "start")
    act(server, room, claim, "complete", text="well done")
    expect(page.locator(".kind-result")).to_contain_text("well done", timeout=PATIENT)
    expect(page.locator("#work-head + span")).to_have_text("nothing to do", timeout=PATIENT)
    assert is_same_page(page)


def measure_delays(server: Program, room: str, page: Page, *, round_number: int) -> list[float]:
    """Of 20 messages, in ms: from the event's own time, just before its commit, to the browser's MutationObserver. One machine's clocks."""
    names = [f"tick-{round_number}-{number}" for number in range(20)]
    for name in names:
        send(server, room, name)
    wait_until(lambda: set(names) <= set(page.evaluate("window.seen")), what="every message is on the page")
    seen = page.evaluate("window.seen")
    posted = {item["text"]: item["id"] for item in server.api("GET", f"rooms/{room}/messages?after=0&limit=500").json()["messages"]}
    times = {event["data"]["message"]: datetime.fromisoformat(event["time"]) for event in events(server, room, name="message.post")}
    return sorted(seen[name] - times[posted[name]].timestamp() * 1000 for name in names)


@pytest.mark.scenario(71)
def test_a_change_shows_within_a_second(server: Program, room: str, page: Page) -> None:
    page.evaluate(WATCH, "(tick-\\d+-\\d+)")
    for round_number in range(3):  # the machine may be busy with something else for a while
        delays = measure_delays(server, room, page, round_number=round_number)
        print(f"commit to browser, ms: median {delays[10]:.0f}, p95 {delays[18]:.0f}, worst {delays[19]:.0f}")
        if delays[18] < 1000:
            break
    assert delays[18] < 1000, delays


@pytest.mark.scenario(73)
def test_a_killed_agent_stands_on_top_with_reason_and_button(server: Program, room: str, page: Page) -> None:
    builder = start_waiting(server, room, "builder")
    expect_agent(page, "ready")
    os.killpg(builder.pid, signal.SIGKILL)
    card = page.locator("#attention-builder")
    expect(card).to_be_visible(timeout=20_000)
    expect(card).to_contain_text("DEAD")
    expect(card.get_by_role("button", name="Copy start command")).to_be_visible()
    assert page.locator("#attention").bounding_box()["y"] < page.locator("#agents").bounding_box()["y"]  # type: ignore[index]
    card.get_by_role("button", name="Dismiss").click()
    expect_agent(page, "offline")
    expect(page.locator("#attention")).to_be_hidden()
    assert is_same_page(page)


@pytest.mark.scenario(71)
def test_every_open_browser_is_told(server: Program, room: str, page: Page, open_page: OpenPage) -> None:
    other = open_page(f"/rooms/{room}/")
    wait_until_live(other)
    page.locator("#composer-text").fill("Said in one browser")
    page.keyboard.press("Enter")
    for one in (page, other):
        expect(one.locator("#messages")).to_contain_text("Said in one browser", timeout=PATIENT)
        assert is_same_page(one)
    expect(page.locator("#composer-text")).to_have_value("")


@pytest.mark.scenario(72)
def test_a_browser_that_was_offline_catches_up_completely(server: Program, room: str, page: Page) -> None:
    send(server, room, "message-before")
    expect(page.locator("#messages")).to_contain_text("message-before", timeout=PATIENT)
    page.context.set_offline(True)
    expect(page.locator("#live")).to_contain_text("reconnecting… showing the state of", timeout=PATIENT)
    for number in range(12):
        send(server, room, f"message-{number}", to=("builder", "reviewer")[number % 2])
    builder = start_waiting(server, room, "builder")
    assert builder.wait() == 0
    expect(page.locator("#messages")).not_to_contain_text("message-0")
    page.context.set_offline(False)
    expect(page.locator("#messages")).to_contain_text("message-11", timeout=20_000)
    said = re.findall(r"message-\w+", page.locator("#messages").inner_text())
    assert said == ["message-before", *(f"message-{number}" for number in range(12))]
    expect_agent(page, "working")
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    assert is_same_page(page)


@pytest.mark.scenario(72)
def test_the_page_survives_the_death_of_the_web_process(server: Program, room: str, page: Page) -> None:
    old = server.kill_part("web")
    expect(page.locator("#live")).to_contain_text("reconnecting", timeout=PATIENT)
    server.wait_for_restart("web", old=old)
    server.wait_until_ready()
    send(server, room, "after the restart")
    expect(page.locator("#messages")).to_contain_text("after the restart", timeout=30_000)
    expect(page.locator("#live")).to_have_attribute("data-state", "live")
    assert is_same_page(page)


def test_what_was_pressed_says_what_became_of_it(server: Program, room: str, page: Page) -> None:
    task = send(server, room, "Nobody will do this")
    line = page.locator(f"#task-{task}")
    line.locator("summary").first.click()
    line.get_by_text("Cancel…").click()
    line.get_by_placeholder("End this work?").fill("not needed any more")
    send(server, room, "a push while the question is open")
    expect(page.locator("#messages")).to_contain_text("a push while", timeout=PATIENT)
    expect(line.get_by_placeholder("End this work?")).to_have_value("not needed any more")
    line.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator(f"#finished #task-{task}")).to_have_attribute("data-status", "closed", timeout=PATIENT)
    closed = server.api("GET", f"rooms/{room}/events?after=0&limit=500").json()["events"]
    assert [event["reason"] for event in closed if event["name"] == "task.cancel_task"] == ["not needed any more"]


def test_a_refused_press_is_explained_in_its_row(server: Program, room: str, page: Page) -> None:
    task = send(server, room, "Already on its way")
    line = page.locator(f"#task-{task}")
    line.locator("summary").first.click()
    line.get_by_text("Complete…").click()
    page.route("**/force_complete/", lambda route: cancel_first(server, room, task, route))
    line.get_by_role("button", name="Complete", exact=True).click()
    expect(page.locator(f"#outcome-row-task-{task}")).to_contain_text("is closed: force_complete is not possible", timeout=PATIENT)


def cancel_first(server: Program, room: str, task: int, route: object) -> None:
    """Somebody else was faster by a moment."""
    assert server.api("POST", f"rooms/{room}/tasks/{task}/cancel", {"reason": "faster"}).status == 200
    route.continue_()  # type: ignore[attr-defined]


def test_open_details_and_a_draft_survive_every_push(server: Program, room: str, page: Page) -> None:
    page.locator("#agent-more-builder > summary").click()
    page.locator("#agent-history-builder > summary").click()
    page.locator("#composer-text").fill("a draft")
    start_waiting(server, room, "builder")
    expect_agent(page, "ready")
    assert page.locator("#agent-more-builder").get_attribute("open") is not None
    assert page.locator("#agent-history-builder").get_attribute("open") is not None
    expect(page.locator("#composer-text")).to_have_value("a draft")


def test_ages_tick_without_the_server(server: Program, room: str, page: Page) -> None:
    start_waiting(server, room, "builder")
    expect_agent(page, "ready")
    page.context.set_offline(True)
    first = row(page)
    wait_until(lambda: row(page) != first, what="the age in the agent's row moved on")


def test_an_overdue_lease_is_labelled_by_the_page_itself(server: Program, room: str, page: Page) -> None:
    start_waiting(server, room, "builder")
    expect_agent(page, "ready")
    page.context.set_offline(True)
    expect(page.locator("#agent-builder .unconfirmed")).to_be_visible(timeout=15_000)


def test_the_start_command_lands_on_the_clipboard(server: Program, room: str, page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#agent-builder").get_by_role("button", name="copy start command").click()
    expect(page.locator("#agent-builder")).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"chatroom wait_for_task {room} --role builder --server {server.url}"


def test_the_copied_command_plays_the_role(server: Program, room: str, page: Page) -> None:
    words = page.locator("#agent-builder [data-copy]").get_attribute("data-copy")
    assert words
    waiting = server.start_command(*words.split()[1:])
    waiting.wait_for_output("waiting for work as")
    wait_until_waiting(server, room)
    expect_agent(page, "ready")


def test_the_rooms_list_shows_what_goes_on_elsewhere(server: Program, room: str, open_page: OpenPage) -> None:
    home = open_page("/")
    wait_until_live(home)
    entry = home.locator(f"#nav-rooms a[href='/rooms/{room}/']")
    start_waiting(server, room, "builder")
    expect(entry).to_have_class(re.compile("is-ready"), timeout=PATIENT)
    send(server, room, "something to do")
    expect(entry).to_contain_text("1 working", timeout=PATIENT)
    assert is_same_page(home)


def test_no_text_of_an_agent_becomes_markup(server: Program, room: str, page: Page) -> None:
    send(server, room, "<img src=x onerror='window.pwned=1'> <script>window.pwned=1</script> [x](javascript:window.pwned=1)")
    expect(page.locator("#messages")).to_contain_text("onerror", timeout=PATIENT)
    assert page.evaluate("window.pwned") is None
    assert page.locator("#messages img, #messages script, #messages a[href^=javascript]").count() == 0


@pytest.mark.parametrize("width", [1440, 900, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen(room: str, server: Program, open_page: OpenPage, width: int, scheme: str) -> None:
    send(server, room, "a-very-long-word-" * 40 + "\n\n```\n" + "x" * 500 + "\n```")
    page = open_page(f"/rooms/{room}/", viewport={"width": width, "height": 800}, scheme=scheme)
    wait_until_live(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width < 1000:
        page.locator("[data-pane-to=team]:visible").first.click()
    expect(page.locator("#agents")).to_be_in_viewport()


def test_the_room_is_usable_with_the_keyboard_alone(server: Program, room: str, page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip-link")).to_be_focused()
    page.keyboard.press("Enter")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "composer-text":
            break
    page.keyboard.type("typed, never clicked")
    page.keyboard.press("Enter")
    expect(page.locator("#messages")).to_contain_text("typed, never clicked", timeout=PATIENT)


def test_without_javascript_a_message_is_sent_all_the_same(server: Program, room: str, chromium: object, signed_in: object) -> None:
    context = chromium.new_context(storage_state=signed_in, java_script_enabled=False)  # type: ignore[attr-defined]
    plain = context.new_page()
    plain.goto(f"{server.url}/rooms/{room}/")
    plain.locator("#composer-text").fill("sent by a plain form")
    plain.get_by_role("button", name="Send", exact=True).click()
    expect(plain.locator("#messages")).to_contain_text("sent by a plain form")
    expect(plain.locator(".notice-bar")).to_contain_text(re.compile(r"Sent: task \d+ is pending"))
    context.close()


def test_every_event_of_the_room_is_reflected_once(server: Program, room: str, page: Page) -> None:
    for number in range(10):
        send(server, room, f"once-{number}")
    expect(page.locator("#messages")).to_contain_text("once-9", timeout=PATIENT)
    ids = page.evaluate("[...document.querySelectorAll('#messages > .message')].map((item) => item.id)")
    known = server.api("GET", f"rooms/{room}/messages?after=0&limit=500").json()["messages"]
    assert ids == [f"message-{message['id']}" for message in known], json.dumps(ids)
