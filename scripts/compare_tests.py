"""Fails unless two runs had the same tests: `python scripts/compare_tests.py build/tests/embedded build/tests/services`."""

import json
import sys
from pathlib import Path


def read_ids(folder: Path) -> set[str]:
    return {nodeid for record in folder.glob("*.json") for nodeid in json.loads(record.read_text())["ids"]}


def main() -> int:
    first, second = Path(sys.argv[1]), Path(sys.argv[2])
    one, other = read_ids(first), read_ids(second)
    for sign, ids in (("-", one - other), ("+", other - one)):
        print("".join(f"{sign} {nodeid}\n" for nodeid in sorted(ids)), end="")
    if one != other or not one:
        print(f"{first}: {len(one)} tests, {second}: {len(other)} tests; expected the same, and some", file=sys.stderr)
        return 1
    print(f"the same {len(one)} tests ran in {first} and in {second}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
