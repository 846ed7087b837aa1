import os
import subprocess
import sys
from pathlib import Path

import pytest

from machines.daemon.errors import BadConfiguration, StartRefused
from machines.daemon.harnesses import Harness, default_path, describe, load, resolve_directory

VALUES = {"model": "m", "dir": "/d", "room": "demo", "role": "builder", "prompt_file": "/p"}


def load_text(tmp_path: Path, text: str) -> dict[str, Harness]:
    path = tmp_path / "harnesses.toml"
    path.write_text(text)
    return load(path)


def test_an_entry_is_read_with_all_it_says(tmp_path: Path) -> None:
    found = load_text(
        tmp_path,
        """
        [harnesses.codex]
        command = ["sh", "--model={model}", "--cd", "{dir}", '{"a": 1}', "{role}@{room}"]
        models = ["big", "small"]
        version = ["sh", "-c", "echo 1.2; echo more"]
        env = ["OPENAI_API_KEY"]
        set = {NO_COLOR = "1"}
        stdin = "prompt"
        log_limit = 100000
        """,
    )["codex"]
    assert found.errors == ()
    assert found.arguments(VALUES)[1:] == ["--model=m", "--cd", "/d", '{"a": 1}', "builder@demo"]
    assert Path(found.arguments(VALUES)[0]).is_absolute()
    assert (found.stdin, found.log_limit) == ("prompt", 100000)
    assert describe(found) == {"name": "codex", "version": "1.2", "models": ["big", "small"], "ok": True, "error": ""}


def test_no_file_means_no_harness(tmp_path: Path) -> None:
    assert load(tmp_path / "harnesses.toml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("command = 'codex exec'", "never one shell string"),
        ("command = []", "command: missing"),
        ("", "command: missing"),
        ("command = ['a', 3]", "expected a list of strings"),
        ("command = ['a', '{modle}']", "unknown placeholder {modle} in '{modle}'; known are {model}"),
        ("command = ['{model}']", "cannot be a placeholder"),
        ("command = ['a']\nenvironment = ['A']", "environment: unknown; expected command, models"),
        ("command = ['a']\nenv = ['CHATROOM_TOKEN']", "CHATROOM_TOKEN cannot be passed on"),
        ("command = ['a']\nenv = ['A B']", "'A B' is not the name of a variable"),
        ("command = ['a']\nset = {CHATROOM_HOME = '/'}", "not CHATROOM_"),
        ("command = ['a']\nset = 'A=1'", "expected a table"),
        ("command = ['a']\nstdin = 'terminal'", "stdin = 'terminal': expected none or prompt"),
        ("command = ['a']\nlog_limit = 1", "log_limit = 1: expected bytes"),
    ],
)
def test_a_faulty_entry_says_what_was_found_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    found = load_text(tmp_path, f"[harnesses.good]\ncommand = ['sh']\n[harnesses.bad]\n{text}\n")
    assert message in found["bad"].problem()
    assert found["good"].problem() == ""
    with pytest.raises(StartRefused, match="harness bad: "):
        found["bad"].arguments(VALUES)


@pytest.mark.parametrize("name", ["$(id)", "a b", "../a", "A"])
def test_a_name_with_special_characters_is_refused(tmp_path: Path, name: str) -> None:
    found = load_text(tmp_path, f"[harnesses.'{name}']\ncommand = ['sh']\n")
    assert "expected lower-case letters" in found[name].problem()


@pytest.mark.parametrize("text", ["[harnesses", "command = ['sh']", "harnesses = 3", "\udcff"])
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, text: str) -> None:
    path = tmp_path / "harnesses.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BadConfiguration, match=str(path)):
        load(path)


@pytest.mark.scenario(49)
def test_a_missing_program_is_named() -> None:
    harness = Harness("codex", command=("no-such-program-here",))
    assert harness.problem() == "harness codex: program not found: no-such-program-here"
    assert describe(harness)["ok"] is False


@pytest.mark.scenario(49)
def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    harness = Harness("codex", command=("sh", "{model}"), models=("big", "small"))
    with pytest.raises(StartRefused, match="harness codex has no model huge; it has big, small"):
        harness.choose_model("huge")
    assert harness.choose_model("") == "big"
    assert Harness("any", command=("sh", "{model}")).choose_model("huge") == "huge"
    assert Harness("none", command=("sh",)).choose_model("") == ""
    with pytest.raises(StartRefused, match="needs a model"):
        Harness("any", command=("sh", "{model}")).choose_model("")


@pytest.mark.scenario(79)
def test_a_value_stays_inside_its_argument_whatever_it_contains() -> None:
    harness = Harness("echo", command=(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--dir={dir}", "{model}"))
    hostile = {**VALUES, "dir": "$(touch x) `id` '\" ; {role}", "model": "-rf /\n*"}
    printed = subprocess.run(harness.arguments(hostile), capture_output=True, text=True, check=True).stdout
    assert printed.strip() == repr([f"--dir={hostile['dir']}", hostile["model"]])


def test_only_allowed_variables_reach_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHATROOM_HOME", "CHATROOM_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "DATABASE_URL"):
        monkeypatch.setenv(name, "secret")
    harness = Harness("codex", command=("sh",), env=("OPENAI_API_KEY",), fixed=(("NO_COLOR", "1"),))
    found = harness.environment(given={"CHATROOM_TOKEN": "the run's"})
    assert found["CHATROOM_TOKEN"] == "the run's"
    assert found["OPENAI_API_KEY"] == "secret"
    assert found["NO_COLOR"] == "1"
    assert found["PATH"] == os.environ["PATH"]
    assert {"CHATROOM_HOME", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL"}.isdisjoint(found)


def test_a_version_command_that_fails_or_hangs_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machines.daemon.harnesses.VERSION_SECONDS", 0.2)
    hanging = Harness("a", command=("sh",), version_command=("sleep", "600"))
    missing = Harness("b", command=("sh",), version_command=("no-such-program-here",))
    assert [describe(harness)["version"] for harness in (hanging, missing)] == ["", ""]
    assert describe(hanging)["ok"] is True


def test_the_file_is_where_the_machine_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CHATROOM_HARNESSES", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "chatroom" / "harnesses.toml"
    monkeypatch.setenv("CHATROOM_HARNESSES", str(tmp_path / "mine.toml"))
    assert default_path() == tmp_path / "mine.toml"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """An allowed directory with a link out of it, a link within it, and a forbidden neighbour with a similar name."""
    path = tmp_path / "allowed"
    (path / "inside").mkdir(parents=True)
    (tmp_path / "allowed-not").mkdir()
    (path / "out").symlink_to(tmp_path / "allowed-not")
    (path / "within").symlink_to(path / "inside")
    (path / "loop").symlink_to(path / "loop")
    (path / "file").write_text("")
    return path


@pytest.mark.scenario(79)
@pytest.mark.scenario(49)
@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("/", "outside of what this machine allows"),
        ("{allowed}/..", "leads to"),
        ("{allowed}/../allowed-not", "leads to"),
        ("{allowed}-not", "outside of what this machine allows"),
        ("{allowed}/out", "leads to"),
        ("{allowed}/inside/../out/.", "leads to"),
        ("{allowed}/missing", "No such file or directory"),
        ("{allowed}/file", "is not a directory"),
        ("{allowed}/loop", "loop"),
        ("inside", "is not absolute"),
        ("~", "is not absolute"),
        ("{allowed}/\0", "is not absolute"),
    ],
)
def test_a_directory_outside_the_allowed_ones_is_refused_in_words(allowed: Path, directory: str, message: str) -> None:
    with pytest.raises(StartRefused, match=message):
        resolve_directory(directory.replace("{allowed}", str(allowed)), allowed=[allowed])


def test_a_directory_inside_is_taken_as_what_it_leads_to(allowed: Path) -> None:
    assert resolve_directory(str(allowed / "within"), allowed=[allowed]) == allowed / "inside"
    assert resolve_directory(str(allowed), allowed=[allowed]) == allowed
    assert resolve_directory(f"{allowed}/inside/../inside", allowed=[allowed]) == allowed / "inside"


def test_an_allowed_directory_may_itself_be_a_link(allowed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(allowed)
    assert resolve_directory(str(tmp_path / "link" / "inside"), allowed=[tmp_path / "link"]) == allowed / "inside"


def test_without_a_directory_the_only_allowed_one_is_taken(allowed: Path) -> None:
    assert resolve_directory("", allowed=[allowed]) == allowed
    with pytest.raises(StartRefused, match="no directory given"):
        resolve_directory("", allowed=[allowed, allowed / "inside"])
    with pytest.raises(StartRefused, match="without --allow-dir"):
        resolve_directory(str(allowed), allowed=[])
