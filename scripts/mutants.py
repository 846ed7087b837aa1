"""Hunts deliberate defects of the program with the simulation: each must be caught. One that survives fails the run."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.standalone import in_processes


def play(job: tuple[int, int, int]) -> tuple[str, str]:
    """The mutant's name, and how it was caught; nothing if it survived."""
    from tests.simulation.mutants import MUTANTS, hunt

    number, seeds, steps = job
    found = hunt(MUTANTS[number], seeds=seeds, steps=steps)
    if found.caught is None or found.caught.violation is None:
        return found.mutant.name, ""
    caught = found.caught.violation
    return (
        found.mutant.name,
        f"seed {found.caught.seed} (the {found.seeds}. tried), [{caught.invariant}] {caught.what.splitlines()[0][:160]}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60, help="how many are tried before a mutant counts as survivor")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options: Any = parser.parse_args()
    numbers = options.only or list(range(count_mutants()))
    survivors = []
    for name, how in in_processes(play, [(number, options.seeds, options.steps) for number in numbers], processes=options.processes):
        print(f"{'caught  ' if how else 'SURVIVED'}  {name}{': ' + how if how else ''}", flush=True)
        if not how:
            survivors.append(name)
    print(f"{len(numbers)} mutants, {len(numbers) - len(survivors)} caught" + (f", survivors: {'; '.join(survivors)}" if survivors else ""))
    return 1 if survivors else 0


def count_mutants() -> int:
    """Without importing the program here: its processes have databases of their own."""
    source = (Path(__file__).resolve().parent.parent / "tests" / "simulation" / "mutants.py").read_text()
    return source.count("\n    Mutant(")


if __name__ == "__main__":
    sys.exit(main())
