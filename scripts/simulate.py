"""Runs seeds of the simulation (docs/simulation.md); a broken one is shrunk to the shortest trace that replays it."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.standalone import in_processes


def play(job: tuple[int, int]) -> tuple[int, str]:
    """Steps, and the report if an invariant broke."""
    from tests.simulation.running import report, run_seed, shrink

    seed, steps = job
    result = run_seed(seed, steps=steps)
    return result.steps, report(shrink(result)) if result.violation is not None else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from 1 on")
    parser.add_argument("--seed", type=int, help="just this one")
    parser.add_argument("--steps", type=int, default=300, help="acts that change something before everything calms down")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options: Any = parser.parse_args()
    seeds = [options.seed] if options.seed is not None else range(1, options.seeds + 1)
    started, steps, broken = time.monotonic(), 0, []
    answers = in_processes(play, [(seed, options.steps) for seed in seeds], processes=options.processes)
    for seed, (taken, trouble) in zip(seeds, answers, strict=True):
        steps += taken
        if trouble:
            broken.append(seed)
            print(f"\n{trouble}\n  replay: make simulate SEED={seed} STEPS={options.steps}\n", flush=True)
    verdict = f"{len(broken)} broken: {', '.join(map(str, broken))}" if broken else "no invariant broken"
    print(f"simulated {len(seeds)} seeds, {steps} steps, in {time.monotonic() - started:.0f} s: {verdict}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
