"""What may be started on this machine: the machine's own TOML file, never anything the server says.

    [harnesses.codex]
    command = ["codex", "exec", "--model", "{model}", "--cd", "{dir}"]
    models = ["gpt-5", "gpt-5-mini"]      # optional: the first one is used when none is chosen
    version = ["codex", "--version"]      # optional: its first line is shown
    env = ["OPENAI_API_KEY"]              # optional: variables passed on besides the ordinary ones
    set = {NO_COLOR = "1"}                # optional: variables with a fixed value
    stdin = "prompt"                      # optional: "none" (the default) or "prompt"
    log_limit = 16777216                  # optional: bytes of output kept per run

Placeholders: {model} {dir} {room} {role} {prompt_file}. Each stays inside its own argument: no shell ever sees one.
"""

import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machines.daemon.errors import BadConfiguration, StartRefused

PLACEHOLDERS = ("model", "dir", "room", "role", "prompt_file")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ORDINARY = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "TERM",
    "TMPDIR",
    "TZ",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)
FIELDS = ("command", "models", "version", "env", "set", "stdin", "log_limit")
VERSION_SECONDS = 5
LOG_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Harness:
    name: str
    command: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    version_command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()
    stdin: str = "none"
    log_limit: int = LOG_LIMIT
    errors: tuple[str, ...] = field(default=())

    def problem(self) -> str:
        """Why nothing can be started with it just now; empty when all is well."""
        if self.errors:
            return f"harness {self.name}: " + "; ".join(self.errors)
        if find_program(self.command[0]) is None:
            return f"harness {self.name}: program not found: {self.command[0]}"
        return ""

    def choose_model(self, model: str) -> str:
        if model and self.models and model not in self.models:
            raise StartRefused(f"harness {self.name} has no model {model}; it has {', '.join(self.models)}")
        if model or not any("{model}" in argument for argument in self.command):
            return model
        if not self.models:
            raise StartRefused(f"harness {self.name} needs a model: choose one in the agent's configuration")
        return self.models[0]

    def arguments(self, values: dict[str, str]) -> list[str]:
        """The program's absolute path and its arguments, placeholders filled in."""
        if problem := self.problem():
            raise StartRefused(problem)
        return [str(find_program(self.command[0])), *(fill(argument, values) for argument in self.command[1:])]

    def environment(self, *, given: dict[str, str]) -> dict[str, str]:
        """Only what is allowed; nothing of ours but what is given for this run."""
        allowed = [name for name in (*ORDINARY, *self.env) if not name.startswith("CHATROOM_")]
        passed = {name: os.environ[name] for name in allowed if name in os.environ}
        return {**passed, **dict(self.fixed), **given}


def fill(argument: str, values: dict[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: values[match[1]], argument)


def find_program(name: str) -> Path | None:
    found = shutil.which(os.path.expanduser(name))  # noqa: PTH111
    return Path(found).absolute() if found else None


def default_path() -> Path:
    configured = os.environ.get("CHATROOM_HARNESSES")
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(configured) if configured else Path(base) / "chatroom" / "harnesses.toml"


def load(path: Path) -> dict[str, Harness]:
    """Every entry, the faulty ones with their errors; a file that cannot be read at all raises."""
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadConfiguration(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfiguration(f"{path}: not valid TOML: {error}") from None
    entries = content.pop("harnesses", {})
    if content or not isinstance(entries, dict):
        found = ", ".join(sorted(content)) or f"harnesses = {entries!r}"
        raise BadConfiguration(f"{path}: found {found}; expected only tables named [harnesses.<name>]")
    return {name: read_entry(name, entry) for name, entry in entries.items()}


def read_entry(name: str, entry: Any) -> Harness:
    errors: list[str] = []
    if not NAME.fullmatch(name):
        errors.append(f"name {name!r}: expected lower-case letters, digits, dot, dash or underscore")
    if not isinstance(entry, dict):
        return Harness(name, errors=(*errors, f"found {entry!r}, expected a table with command = [...]"))
    errors += [f"{key}: unknown; expected {', '.join(FIELDS)}" for key in entry if key not in FIELDS]
    command = words(entry, "command", errors, required=True)
    check_placeholders(command, errors)
    return Harness(
        name,
        command=command,
        models=words(entry, "models", errors),
        version_command=words(entry, "version", errors),
        env=variables(entry, errors),
        fixed=fixed_variables(entry, errors),
        stdin=one_of(entry, "stdin", ("none", "prompt"), errors),
        log_limit=log_limit(entry, errors),
        errors=tuple(errors),
    )


def words(entry: dict[str, Any], key: str, errors: list[str], *, required: bool = False) -> tuple[str, ...]:
    found = entry.get(key, [])
    if isinstance(found, list) and all(isinstance(word, str) and word and "\0" not in word for word in found):
        if required and not found:
            errors.append(f'{key}: missing; expected a list of arguments, for example ["codex", "exec"]')
        return tuple(found)
    errors.append(f'{key} = {found!r}: expected a list of strings, for example ["codex", "exec"] (never one shell string)')
    return ()


def check_placeholders(command: tuple[str, ...], errors: list[str]) -> None:
    if command and PLACEHOLDER.search(command[0]):
        errors.append(f"command: the program itself ({command[0]}) cannot be a placeholder")
    for argument in command[1:]:
        errors += [
            f"command: unknown placeholder {{{name}}} in {argument!r}; known are {', '.join(f'{{{known}}}' for known in PLACEHOLDERS)}"
            for name in PLACEHOLDER.findall(argument)
            if name not in PLACEHOLDERS
        ]


def variables(entry: dict[str, Any], errors: list[str]) -> tuple[str, ...]:
    found = words(entry, "env", errors)
    errors += [f"env: {name!r} is not the name of a variable" for name in found if not VARIABLE.fullmatch(name)]
    errors += [
        f"env: {name} cannot be passed on: agents get their own CHATROOM_ variables" for name in found if name.startswith("CHATROOM_")
    ]
    return found


def fixed_variables(entry: dict[str, Any], errors: list[str]) -> tuple[tuple[str, str], ...]:
    found = entry.get("set", {})
    if not isinstance(found, dict):
        errors.append(f'set = {found!r}: expected a table, for example {{NO_COLOR = "1"}}')
        return ()
    good = []
    for name, value in found.items():
        if VARIABLE.fullmatch(name) and not name.startswith("CHATROOM_") and isinstance(value, str) and "\0" not in value:
            good.append((name, value))
        else:
            errors.append(f"set: {name} = {value!r}: expected a variable (not CHATROOM_…) with a string")
    return tuple(good)


def one_of(entry: dict[str, Any], key: str, allowed: tuple[str, ...], errors: list[str]) -> str:
    found = entry.get(key, allowed[0])
    if found in allowed:
        return str(found)
    errors.append(f"{key} = {found!r}: expected {' or '.join(allowed)}")
    return allowed[0]


def log_limit(entry: dict[str, Any], errors: list[str]) -> int:
    found = entry.get("log_limit", LOG_LIMIT)
    if isinstance(found, int) and not isinstance(found, bool) and 64 * 1024 <= found <= 1024**3:
        return found
    errors.append(f"log_limit = {found!r}: expected bytes, from 65536 to 1073741824")
    return LOG_LIMIT


def describe(harness: Harness) -> dict[str, Any]:
    """As the server and `harnesses` see it. Blocking: runs the version command."""
    problem = harness.problem()
    version = "" if problem else find_version(harness)
    return {"name": harness.name, "version": version, "models": list(harness.models), "ok": not problem, "error": problem}


def find_version(harness: Harness) -> str:
    """The first line its version command prints; empty when it prints none in time. A version is a courtesy, never a reason to fail."""
    if not harness.version_command or (program := find_program(harness.version_command[0])) is None:
        return ""
    try:
        answer = subprocess.run(
            [str(program), *harness.version_command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=VERSION_SECONDS,
            env=harness.environment(given={}),
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = answer.stdout.decode("utf-8", "replace").strip().splitlines()
    return lines[0][:100] if lines else ""


def resolve_directory(directory: str, *, allowed: list[Path]) -> Path:
    """Where the agent works: absolute, links resolved, inside one of the allowed ones; else words for the page."""
    if not allowed:
        raise StartRefused("this daemon was started without --allow-dir: agents have no directory to work in")
    named = ", ".join(str(path) for path in allowed)
    if not directory:
        if len(allowed) > 1:
            raise StartRefused(f"no directory given; allowed on this machine: {named}")
        directory = str(allowed[0])
    path = Path(directory)
    if not path.is_absolute() or "\0" in directory:
        raise StartRefused(f"directory {directory!r} is not absolute; allowed on this machine: {named}")
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise StartRefused(f"directory {directory}: {getattr(error, 'strerror', None) or error}") from None
    if not any(resolved.is_relative_to(Path(base).resolve()) for base in allowed):
        leads = "" if resolved == path else f" leads to {resolved}, which"
        raise StartRefused(f"directory {directory}{leads} is outside of what this machine allows: {named}")
    if not resolved.is_dir():
        raise StartRefused(f"directory {directory} is not a directory")
    if not os.access(resolved, os.R_OK | os.X_OK):
        raise StartRefused(f"directory {directory} cannot be entered by this daemon's user")
    return resolved
