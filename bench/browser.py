"""From a commit to what a real browser shows, without a reload."""

import asyncio
import re
import shutil
from datetime import datetime

from playwright.async_api import Page, async_playwright

from bench.fleet import ROLES, Fleet
from bench.server import Server
from bench.wire import Api

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WATCH = """() => {
    window.seen = {};
    const look = () => {
        for (const [text] of document.body.textContent.matchAll(/visible \\d+;/g)) window.seen[text] ??= Date.now();
    };
    new MutationObserver(look).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


async def measure_browser(server: Server, fleet: Fleet, *, count: int, rate: float) -> list[float]:
    """The open page of a room where five agents work; each message is found in it by a MutationObserver, whose clock is the server's."""
    api, room = fleet.api, fleet.agents[0].room
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = await browser.new_page()
        await page.goto(server.sign_in_link)
        await page.goto(f"{server.url}/rooms/{room}/")
        await page.wait_for_load_state("load")
        await page.evaluate(WATCH)
        await until_live(api, page, room)
        for number in range(count):
            await api.call("POST", f"rooms/{room}/messages", {"text": f"visible {number};", "to": ROLES[number % len(ROLES)]})
            await asyncio.sleep(1 / rate)
        seen = await until_seen(page, f"visible {count - 1};")
        await browser.close()
    committed = await commit_times(api, room)
    return [seen[text] / 1000 - at for text, at in committed.items() if text != FIRST]


FIRST = "visible 999999;"


async def until_live(api: Api, page: Page, room: str) -> None:
    """The first message waits for the page's socket; it does not count."""
    await api.call("POST", f"rooms/{room}/messages", {"text": FIRST})
    await until_seen(page, FIRST)


async def until_seen(page: Page, text: str) -> dict[str, float]:
    """Asked again and again: the page's own policy forbids what Playwright would wait with."""
    async with asyncio.timeout(15):
        while text not in (seen := await page.evaluate("() => window.seen")):
            await asyncio.sleep(0.1)
    return dict(seen)


async def commit_times(api: Api, room: str) -> dict[str, float]:
    """The time of the message's event, which is written last: a moment before the commit."""
    messages = {message["id"]: message["text"] for message in (await api.call("GET", f"rooms/{room}/messages?limit=500"))["messages"]}
    events = (await api.call("GET", f"rooms/{room}/events?limit=500"))["events"]
    posted = {event["subject_id"]: event["time"] for event in events if event["name"] == "message.post"}
    times = {text: datetime.fromisoformat(posted[key]).timestamp() for key, text in messages.items() if key in posted}
    return {text: at for text, at in times.items() if re.fullmatch(r"visible \d+;", text)}
