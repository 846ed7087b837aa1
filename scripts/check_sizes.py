"""Fails for a file over 400 lines or a function over 50: both want to be several."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_LIMIT, FUNCTION_LIMIT = 400, 50


def sources() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], capture_output=True, text=True, check=True).stdout.split()
    return (Path(name) for name in listed if "/migrations/" not in name and Path(name).exists())


def too_large(path: Path) -> Iterator[str]:
    text = path.read_text()
    if (lines := len(text.splitlines())) > FILE_LIMIT:
        yield f"{path}: {lines} lines, expected at most {FILE_LIMIT}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LIMIT:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, expected at most {FUNCTION_LIMIT}"


def main() -> int:
    found = [line for path in sources() for line in too_large(path)]
    print("\n".join(found) or "every file and function has its size")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
