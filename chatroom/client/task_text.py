"""A task as an agent reads it in a terminal: the work, and the literal commands that come next."""

from __future__ import annotations

from typing import Any

from chatroom.client.output import clean, one_line
from chatroom.client.program import command


def task_text(task: dict[str, Any], *, room: str, server: str | None, has_token_option: bool) -> str:
    # The claim is a secret of this delivery: no text can forge the lines that frame it.
    name = f"task {task['task']} ({one_line(task['claim'])})"
    head = (
        f"Task {task['task']} for {one_line(task['role'])} in {room}, attempt {task['attempt']}, from {one_line(task.get('from') or '-')}"
    )
    return "\n".join([
        head, "", *earlier_messages(task, name=name),
        f"----- text of {name}", clean(task["text"]), f"----- end of {name}", "",
        *next_commands(task, room=room, server=server), *(["(add --token as you gave it here)"] if has_token_option else []),
    ])  # fmt: skip


def earlier_messages(task: dict[str, Any], *, name: str) -> list[str]:
    messages = task.get("context") or []
    lines = [f"----- before it, for {name}"] if messages else []
    for message in messages:
        lines += [f"{one_line(message.get('from'))} → {one_line(message.get('to') or 'all')}:", clean(message.get("text", "")), ""]
    return lines


def next_commands(task: dict[str, Any], *, room: str, server: str | None) -> list[str]:
    claim = ("--claim", one_line(task["claim"]))

    def line(act: str, *words: str) -> str:
        return "  " + command(act, room, *words, server=server)

    return [
        "Say that you begin:",
        line("task_started", *claim),
        "While you work, what would interest the others:",
        line("report_progress", *claim, "--text", "…"),
        "Then exactly one of these (--text - reads standard input, --file F a file):",
        line("handoff", *claim, "--next-role", "ROLE", "--text", "…") + "      # ROLE: who goes on with it, or user",
        line("task_complete", *claim, "--text", "…"),
        line("fail_task", *claim, "--text", "…"),
        "Then wait for the next task:",
        line("wait_for_task", "--role", one_line(task["role"])),
    ]
