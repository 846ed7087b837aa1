"""What a machine says of itself and of its programs: words as the database takes them and a terminal does not obey them."""

import re
from typing import Any

# Escape sequences, whole where they are whole, and every other control character but tab and line feed.
CONTROL = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|[PX^_][^\x1b]*(\x1b\\)?|[ -/]+[0-~]|[0-~])|[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]"
)
LONGEST = 2000
DEEPEST = 10


def clean_text(value: object, limit: int = LONGEST) -> str:
    """Without control sequences, NUL and lone surrogates; the beginning, if it is too long."""
    return CONTROL.sub("", str(value or ""))[:limit].encode(errors="replace").decode()


def clean_line(value: object, limit: int = 120) -> str:
    return " ".join(clean_text(value, limit).split())


def read_id(value: object) -> int:
    """The id of a row; 0, which no row has, for anything else."""
    return value if isinstance(value, int) and 0 < value < 2**63 else 0


def clean_json(value: Any, *, depth: int = 0) -> Any:
    """The same for what a daemon answers: texts inside of lists and objects, not too deep."""
    if isinstance(value, str):
        return clean_text(value)
    if depth == DEEPEST or value is None or isinstance(value, bool | int | float):
        return value if isinstance(value, bool | int | float) else None
    if isinstance(value, list):
        return [clean_json(item, depth=depth + 1) for item in value[:1000]]
    return {clean_line(name): clean_json(item, depth=depth + 1) for name, item in list(value.items())[:1000]}
