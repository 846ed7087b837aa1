"""Rules that no test of behaviour can see: who may change a status, who may touch the channel layer, which way imports go."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from chatroom.numbers import DEFAULTS

ROOT = Path(__file__).parent.parent.parent
STATE_FIELDS = {"status", "state"}
# A job, a device's sign-in and a machine's… have no declared transitions: these are plain columns.
PLAIN = {"chatroom/jobs.py", "chatroom/services/tokens.py"}
CHANNEL_LAYER = {"chatroom/hub.py", "chatroom/events.py"}
# Of task mode and drain, which are still to come.
LATER = {"MACHINE_QUEUE", "RETRY_ATTEMPTS", "RUN_TIMEOUT", "DRAIN_TIMEOUT"}


def sources() -> list[Path]:
    found = [path for app in ("chatroom", "agents", "machines") for path in (ROOT / app).rglob("*.py")]
    assert len(found) > 50
    return [path for path in found if "migrations" not in path.parts]


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def calls(path: Path) -> Iterator[ast.Call]:
    yield from (node for node in nodes(path) if isinstance(node, ast.Call))


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id if isinstance(call.func, ast.Name) else ""


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_no_status_is_updated_outside_of_a_transition() -> None:
    found = []
    for path in sources():
        for call in calls(path):
            words = {keyword.arg for keyword in call.keywords}
            if name_of(call) == "update" and words & STATE_FIELDS:
                found.append(where(path, call))
            if name_of(call) in {"bulk_update", "bulk_create"} and STATE_FIELDS & set(texts_in(call)):
                found.append(where(path, call))
    assert found == []


def texts_in(node: ast.AST) -> Iterator[str]:
    yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_no_status_is_assigned() -> None:
    found = []
    for path in sources():
        if str(path.relative_to(ROOT)) in PLAIN or "models" in path.parts or "daemon" in path.parts:
            continue
        for node in nodes(path):
            targets = (
                node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AugAssign | ast.AnnAssign) else []
            )
            parts = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
            found += [where(path, part) for part in parts if isinstance(part, ast.Attribute) and is_a_models_status(part)]
    assert found == []


def is_a_models_status(target: ast.Attribute) -> bool:
    return (
        target.attr in STATE_FIELDS
        and isinstance(target.value, ast.Name)
        and target.value.id in {"task", "agent", "run", "command", "machine"}
    )


def test_every_status_with_transitions_is_protected() -> None:
    from django.apps import apps
    from django_fsm import FSMField

    fields = [field for model in apps.get_models() for field in model._meta.local_fields if isinstance(field, FSMField)]
    assert len(fields) >= 2
    assert all(field.protected and not field.editable for field in fields)
    # Reading a protected status anew can switch its protection off after an error: rows are loaded again with get().
    found = [where(path, call) for path in sources() for call in calls(path) if name_of(call) in {"refresh_from_db", "defer"}]
    assert found == []


def test_transitions_are_called_by_nobody_but_move() -> None:
    """`move` saves, writes the event and gives the hint: a transition called by hand would do none of it."""
    from django.apps import apps

    names = set()
    for model in apps.get_models():
        for field in ("status", "state"):
            if transitions := getattr(model, f"get_all_{field}_transitions", None):
                names |= {transition.name for transition in transitions(model())}
    assert {"claim_task", "join", "complete_task"} <= names
    rows = {"task", "agent", "run", "command", "machine", "subject"}
    found = []
    for path in sources():
        if {"up", "daemon"} & set(path.parts) or path.name == "local_daemon.py":
            continue  # they know no models; their runs are other things
        for call in calls(path):
            by_row = isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id in rows
            if by_row and name_of(call) in names:
                found.append(where(path, call))
    assert found == []


def test_the_channel_layer_is_touched_in_one_place() -> None:
    words = {"get_channel_layer", "group_send", "group_add", "group_discard", "channel_layer"}
    found = set()
    for path in sources():
        names = {node.id for node in nodes(path) if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes(path) if isinstance(node, ast.Attribute)}
        if names & words:
            found.add(str(path.relative_to(ROOT)))
    assert found <= CHANNEL_LAYER


def test_every_number_is_read_by_somebody() -> None:
    """One that nobody reads is a promise that nothing keeps."""
    files = [path for path in sources() if path.name != "numbers.py"]
    read = {word for path in files for node in nodes(path) for word in [*texts_of(node), getattr(node, "attr", "")]}
    assert set(DEFAULTS) - read == LATER


def texts_of(node: ast.AST) -> list[str]:
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_imports_go_one_way(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(ROOT)
    status = lint_imports(no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_no_test_sleeps_or_is_empty() -> None:
    found = []
    for path in (ROOT / "tests" / "agents").glob("*.py"):
        for node in nodes(path):
            if isinstance(node, ast.Call) and name_of(node) == "sleep":
                found.append(where(path, node))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not proves_something(node):
                found.append(where(path, node))
    assert found == []


def proves_something(test: ast.FunctionDef) -> bool:
    checks = any(isinstance(node, ast.Assert) for node in ast.walk(test))
    return checks or any(isinstance(node, ast.Call) and name_of(node) == "raises" for node in ast.walk(test))


def test_every_number_is_described_and_what_nothing_obeys_yet_is_said_to_be_for_later() -> None:
    rows = [line.split("|") for line in (ROOT / "docs" / "configuration.md").read_text().splitlines() if line.startswith("| `")]
    meanings = {name: row[3] for row in rows for name in re.findall(r"`([A-Z_]+)`", row[1])}
    assert set(DEFAULTS) <= set(meanings)
    assert {name for name in DEFAULTS if "obeyed by nothing yet" in meanings[name]} == LATER
    assert "events, messages and tasks are kept" in meanings["EVENT_RETENTION"]
