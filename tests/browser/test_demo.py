"""Work that wakes its agents, the demo's one click first, seen in a real browser."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage, is_same_page, wait_until_live
from tests.browser.machines import place, press, server, signed_in, statuses, watch
from tests.processes.acts import agent, messages, send
from tests.processes.demo import WRONG, clone_shop
from tests.processes.program import Program

__all__ = ["server", "signed_in"]
PATIENT = 30_000


@pytest.mark.scenario(71)
def test_one_click_shows_the_chain_until_its_verdict(server: Program, open_page: OpenPage) -> None:
    page = open_page("/rooms/demo/")
    wait_until_live(page)
    watch(page, "builder")
    watch(page, "reviewer")
    offer = page.locator(".demo-offer")
    expect(offer).to_contain_text("one failing test")
    expect(offer).to_contain_text("--- a/shop/")
    offer.get_by_role("button", name="Send it").click()
    verdict = page.locator(".kind-result")
    expect(verdict).to_contain_text("The tests pass: 6 tests, all of them green.", timeout=PATIENT)
    expect(verdict).to_contain_text("test_pricing_a_cart_again_changes_nothing")
    said = page.locator(".kind-progress")
    expect(said.filter(has_text="applying").first).to_be_visible()
    expect(said.filter(has_text="committed").first).to_be_visible()
    expect(said.filter(has_text="checked").first).to_be_visible()
    expect(offer).to_have_count(0)
    for role in ("builder", "reviewer"):
        expect(page.locator(f"#agent-{role}")).to_have_attribute("data-status", "ready", timeout=PATIENT)
        seen = statuses(page, role)
        assert (seen[0], seen[-1]) == ("offline", "ready")
        assert seen.index("restarting") < seen.index("working")
    assert is_same_page(page)
    assert len(messages(server, "demo", "result")) == 1


def test_a_wrong_patch_that_somebody_types_gets_a_failing_verdict_with_the_output(server: Program, room: str, page: Page) -> None:
    clone_shop(server, room)
    for role in ("builder", "reviewer"):
        place(server, room, f"demo-{role}", role=role, folder=server.home / "demo" / room)
    page.get_by_placeholder("Message the room").fill(WRONG)
    page.get_by_role("button", name="Send", exact=True).click()
    verdict = page.locator(".kind-result")
    expect(verdict).to_contain_text("The tests fail: FAILED (failures=2) of 6 tests.", timeout=PATIENT)
    expect(verdict.locator("pre").last).to_contain_text("AssertionError")
    expect(page.locator(".kind-progress").filter(has_text="committed").first).to_be_visible()
    assert is_same_page(page)
    for role in ("builder", "reviewer"):
        press(server, room, "stop", role=role)


def test_a_task_that_waits_for_its_agent_starts_it_and_is_done(server: Program, room: str, page: Page) -> None:
    place(server, room, "shell")
    watch(page)
    send(server, room, "wake up")
    expect(page.locator(".kind-result")).to_contain_text("builder did: wake up", timeout=PATIENT)
    assert statuses(page)[:2] == ["offline", "restarting"]
    assert agent(server, room)["desired_state"] == "running"
    press(server, room, "stop")
