"""An agent that runs gets another home, and a machine is taken out of service, in a real browser with real daemons."""

import signal

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage, is_same_page, wait_until_live
from tests.browser.machines import LAPTOP, Laptop, laptop, local_machine, place, press, run_pid, server, signed_in, statuses, watch
from tests.processes.acts import agent, events, messages, send, task, wait_for_status
from tests.processes.program import Program, is_alive, wait_until

__all__ = ["laptop", "server", "signed_in"]
PATIENT = 30_000


def expect_agent(page: Page, status: str, role: str = "builder") -> Locator:
    row = page.locator(f"#agent-{role}")
    expect(row).to_have_attribute("data-status", status, timeout=PATIENT)
    return row


def open_form(page: Page, role: str = "builder") -> Locator:
    page.locator(f"#agent-more-{role} > summary").click()
    page.locator(f"#agent-config-{role} > summary").click()
    form = page.locator(f"#configuration-{role}")
    expect(form).to_be_visible(timeout=PATIENT)
    return form


def choose(form: Locator, machine: str, directory: object) -> None:
    form.locator("select[name=machine]").select_option(machine)
    expect(form.get_by_text(f"In or below {directory}")).to_be_visible(timeout=PATIENT)
    form.get_by_label("Directory").fill(str(directory))


def test_an_agent_that_runs_is_stopped_moved_and_started_there_by_one_press(
    server: Program, laptop: Laptop, room: str, page: Page, open_page: OpenPage
) -> None:
    place(server, room, "shell")
    press(server, room, "start")
    expect_agent(page, "ready")
    pid, other = run_pid(server, room), open_page(f"/rooms/{room}/")
    wait_until_live(other)
    watch(other)
    form = open_form(page)
    expect(form).to_contain_text("Another machine or kind: it is stopped first")
    choose(form, LAPTOP, laptop.work)
    form.get_by_role("button", name="Save").click()
    expect(form.locator("output")).to_contain_text("it is stopped first, then changed", timeout=PATIENT)
    for one in (page, other):
        expect(one.locator("#agent-builder .agent-home")).to_contain_text(LAPTOP, timeout=PATIENT)
        row = expect_agent(one, "ready")
        expect(row.locator(".is-moving")).to_have_count(0)
        assert is_same_page(one)
    assert not is_alive(pid)
    assert statuses(other)[:4] == ["ready", "offline", "restarting", "ready"]
    assert agent(server, room)["machine"] == LAPTOP
    send(server, room, "hello there")
    expect(page.locator(".kind-result")).to_contain_text("builder did: hello there", timeout=PATIENT)
    press(server, room, "stop")


def test_while_its_machine_is_away_the_form_offers_to_give_its_process_up(server: Program, laptop: Laptop, room: str, page: Page) -> None:
    place(server, room, "shell", machine=LAPTOP, folder=laptop.work)
    press(server, room, "start")
    expect_agent(page, "ready")
    pid = run_pid(server, room)
    assert laptop.daemon
    laptop.daemon.signal(signal.SIGKILL)
    expect(page.locator("#agent-builder .unconfirmed")).to_contain_text(f"{LAPTOP} is away", timeout=PATIENT)
    form = open_form(page)
    choose(form, local_machine(server), server.home / "demo")
    form.get_by_role("button", name="Save").click()
    expect(form.locator("output .error")).to_contain_text("is away: --force gives that run up", timeout=PATIENT)
    form.get_by_label("Give up its process").check()
    form.get_by_role("button", name="Save").click()
    expect(form.locator("output")).to_contain_text("Saved: builder lives on", timeout=PATIENT)
    expect_agent(page, "ready")
    laptop.start()
    wait_until(lambda: not is_alive(pid), within=30, what="the process that was given up is ended when its machine is back")
    press(server, room, "stop")


def test_a_machine_is_revoked_at_once_with_what_lives_there_and_its_agent_moves_on(
    server: Program, laptop: Laptop, room: str, page: Page, open_page: OpenPage
) -> None:
    place(server, room, "holder", machine=LAPTOP, folder=laptop.work)
    number = send(server, room, "hold this")
    expect_agent(page, "working")
    pid = run_pid(server, room)
    fleet = open_page("/machines/")
    wait_until_live(fleet)
    row = fleet.locator("#machines .machine").filter(has=fleet.get_by_role("heading", name=LAPTOP, exact=True))
    row.get_by_text("Revoke…").click()
    expect(row).to_contain_text("here: their processes are given up")
    row.get_by_role("button", name=f"Revoke {LAPTOP}").click()
    expect(row).to_have_count(0, timeout=PATIENT)
    expect_agent(page, "dead")
    card = page.locator("#attention-builder")
    expect(card).to_contain_text(f"{LAPTOP} was revoked by owner", timeout=PATIENT)
    expect(card.get_by_role("button", name="Restart")).to_have_count(0)
    assert laptop.daemon
    assert laptop.daemon.wait(within=20) == 3
    assert not is_alive(pid)
    assert task(server, room, number)["status"] == "pending"
    assert [text for text in notices(server, room) if "was revoked" in text] == notices(server, room)[:1]
    assert len(events(server, room, subject="agent", to="dead")) == 1

    card.get_by_role("link", name="Configure").click()
    form = page.locator("#configuration-builder")
    form.locator("select[name=machine]").select_option(local_machine(server))
    expect(form.get_by_text(f"In or below {server.home / 'demo'}")).to_be_visible(timeout=PATIENT)
    form.locator("select[name=harness]").select_option("shell")
    form.get_by_label("Directory").fill(str(server.home / "demo"))
    form.get_by_role("button", name="Save").click()
    expect(page.locator(".kind-result")).to_contain_text("builder did: hold this", timeout=PATIENT)
    expect(page.locator("#attention")).to_be_hidden()
    assert is_same_page(page)
    press(server, room, "stop")
    wait_for_status(server, room, "builder", "offline")


def notices(server: Program, room: str) -> list[str]:
    return [message["text"] for message in messages(server, room, "notice")]
