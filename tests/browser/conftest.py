"""A real browser on the really started program."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.processes.acts import FAST, new_room
from tests.processes.conftest import MakeProgram, make_program, prepared_home, stack
from tests.processes.program import Program

__all__ = ["make_program", "prepared_home", "stack"]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
WIDE = {"width": 1440, "height": 900}
LIMIT = 30_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "Chromium was not found: apt-get install -y --no-install-recommends chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server(make_program: MakeProgram) -> Iterator[Program]:
    """One running server for all pages. Its timers are shorter; its paths are not."""
    program = make_program(**FAST)
    program.start("--no-daemon", "--no-demo")
    yield program
    program.stop()


def sign_in_path(server: Program) -> str:
    assert server.up is not None
    found = re.search(r"/sign-in/\S+/", server.up.output)
    assert found, f"no sign-in link was printed:\n{server.up.output}"
    return found[0]


@pytest.fixture(scope="session")
def signed_in(server: Program, chromium: Browser) -> object:
    """The cookies of the owner, from the link that `up` printed."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server.url + sign_in_path(server))
    page.wait_for_selector(".top .menu")
    state = context.storage_state()
    context.close()
    return state


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(server: Program, chromium: Browser, signed_in: object) -> Iterator[OpenPage]:
    """A page of a person's own browser. Fails when anything of it broke the page's own rules."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def open_one(path: str, *, scheme: str = "light", viewport: dict[str, int] = WIDE) -> Page:
        context = chromium.new_context(storage_state=signed_in, viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
        context.set_default_timeout(LIMIT)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None)
        page.goto(server.url + path)
        page.evaluate("window.marker = 'the same page'")
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def room(server: Program, request: pytest.FixtureRequest) -> str:
    return new_room(server, request.node.name.replace("_", " ")[:60])


@pytest.fixture
def page(open_page: OpenPage, room: str) -> Page:
    page = open_page(f"/rooms/{room}/")
    wait_until_live(page)
    return page


def wait_until_live(page: Page) -> None:
    page.wait_for_selector("#live[data-state=live]")


def is_same_page(page: Page) -> bool:
    """Never reloaded since it was opened."""
    return bool(page.evaluate("window.marker === 'the same page'"))
