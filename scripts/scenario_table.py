"""Prints which scenario is proven by which tests, from the records of several pytest calls, and fails when one is missing.

python scripts/scenario_table.py build/tests/embedded
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

# What has to be there by now, and where: P through the started program (tests/processes or tests/browser), B in a real browser.
LATER = {47, 89}
NUMBERS = {*range(1, 63), *range(71, 74), *range(76, 79), *range(84, 101)} - LATER
STARTED = {3, 4, 7, 8, 11, 13, 14, 16, 22, 24, 25, 30, *range(36, 40), 41, 42, 44, 45, 46, 48, *range(50, 56), 84, 86, 87, 88}
STARTED |= {91, 92, 93, 98, 99, 100}
IN_BROWSER = {36, 37, 38, 48, 49, 51, 52, 71, 72, 73}
REQUIRED = {number: "P" * (number in STARTED) + "B" * (number in IN_BROWSER) for number in sorted(NUMBERS)}
PLACES = {"P": ("tests/processes/", "tests/browser/"), "B": ("tests/browser/",)}


def read_scenarios(folder: Path) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for record in sorted(folder.glob("*.json")):
        for number, ids in json.loads(record.read_text())["scenarios"].items():
            found.setdefault(int(number), set()).update(ids)
    return found


def table(found: dict[int, set[str]]) -> Iterator[str]:
    for number in sorted(found.keys() | REQUIRED.keys()):
        ids = sorted(found.get(number, ()))
        yield f"{number:>4} {REQUIRED.get(number, ''):<2} {ids[0] if ids else '— no test —'}"
        yield from (f"        {nodeid}" for nodeid in ids[1:])


def missing(found: dict[int, set[str]]) -> list[str]:
    lines = []
    for number, level in sorted(REQUIRED.items()):
        ids = found.get(number, set())
        if not ids:
            lines.append(f"scenario {number}: no test")
        for places in (PLACES[letter] for letter in level if ids):
            if not is_at(ids, places):
                lines.append(f"scenario {number}: no test in {' or '.join(places)}")
    return lines


def is_at(ids: Iterable[str], places: tuple[str, ...]) -> bool:
    return any(nodeid.startswith(places) for nodeid in ids)


def main() -> int:
    found = read_scenarios(Path(sys.argv[1]))
    print("scenario  proven by")
    print("\n".join(table(found)))
    if lines := missing(found):
        print("\n" + "\n".join(lines), file=sys.stderr)
        return 1
    print(f"\nall {len(REQUIRED)} scenarios required by now have their tests")
    return 0


if __name__ == "__main__":
    sys.exit(main())
