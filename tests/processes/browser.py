"""What a browser does without JavaScript: pages, a session, forms."""

import http.client
import re
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from tests.processes.program import Program

PASSWORD = "correct horse battery"


class Browser:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.cookies: dict[str, str] = {}

    @classmethod
    def of_owner(cls, program: Program) -> "Browser":
        """By the link that `up` printed, which works once."""
        browser = cls(program)
        found = re.search(r"/sign-in/\S+", program.up.stdout if program.up else "")
        assert found
        browser.get(found[0])
        return browser

    @classmethod
    def of_person(cls, program: Program, name: str) -> "Browser":
        browser = cls(program)
        browser.get("/sign-in/")
        browser.post("/sign-in/", username=name, password=PASSWORD)
        return browser

    def get(self, path: str) -> str:
        status, text = self.ask("GET", path)
        assert status in {200, 302}, f"GET {path}: {status}\n{text[:2000]}"
        return text

    def post(self, path: str, **fields: str) -> None:
        token = next((value for name, value in self.cookies.items() if "csrf" in name), "")
        status, text = self.ask("POST", path, body=urlencode({**fields, "csrfmiddlewaretoken": token}))
        assert status in {200, 302}, f"POST {path}: {status}\n{text[:2000]}"

    def ask(self, method: str, path: str, *, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=15)
        headers = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items()), "Origin": self.program.url}
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            for value in answer.headers.get_all("Set-Cookie") or []:
                self.cookies.update({name: morsel.value for name, morsel in SimpleCookie(value).items()})
            return answer.status, answer.read().decode()
        finally:
            connection.close()


def add_people(program: Program, names: list[str], *, room: str) -> list[Browser]:
    """Members of the room, each signed in with a password."""
    settings = {"DJANGO_SUPERUSER_PASSWORD": PASSWORD}
    creating = [
        program.start_raw("createsuperuser", "--noinput", "--username", name, "--email", f"{name}@example.org", settings=settings)
        for name in names
    ]
    for name, command in zip(names, creating, strict=True):
        assert command.wait(within=60) == 0, command.output
        answer = program.api("POST", f"rooms/{room}/members", {"username": name, "role": "member"})
        assert answer.status == 201, answer.text
    return [Browser.of_person(program, name) for name in names]
