"""The page of an agent's output."""

from playwright.sync_api import Page, WebSocketRoute

from tests.processes.program import Program, wait_until


def test_a_log_whose_connection_has_died_unnoticed_is_connected_anew(server: Program, room: str, page: Page) -> None:
    opened: list[WebSocketRoute] = []
    said: list[str | bytes] = []

    def hear(message: str | bytes) -> None:
        said.append(message)

    def be_silent(socket: WebSocketRoute) -> None:
        opened.append(socket)
        socket.on_message(hear)

    page.route_web_socket("**/log/", be_silent)
    page.goto(f"{server.url}/rooms/{room}/agents/builder/log/")
    wait_until(lambda: page.evaluate("true") and len(opened) == 2, within=25, what="a second connection")
    assert '{"ping": true}' in said
