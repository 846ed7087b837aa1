"""Which lines of the services and of the restart policy the simulation reaches by itself; fails below 90 %."""

import argparse
import sys
from pathlib import Path

import coverage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.simulation.plan import LOPSIDED
from tests.simulation.standalone import database

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ["chatroom/services/*", "agents/services/*", "machines/services/*", "machines/daemon/policy.py"]
EXPECTED = 90.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="half of them lopsided (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    options = parser.parse_args()
    measured = coverage.Coverage(data_file=None, config_file=False, include=[str(ROOT / pattern) for pattern in MEASURED])
    measured.start()
    with database():
        from tests.simulation.running import run_seed

        for number in range(1, options.seeds // 2 + 1):
            for seed in (number, LOPSIDED + number):
                if (violation := run_seed(seed, steps=options.steps).violation) is not None:
                    print(f"seed {seed} broke [{violation.invariant}] {violation.what}")
    measured.stop()
    reached = measured.report(include=[str(ROOT / pattern) for pattern in MEASURED], show_missing=True, skip_covered=False)
    print(f"the simulation alone reaches {reached:.1f} % of the services' and the policy's lines (expected: {EXPECTED:.0f} %)")
    return 0 if reached >= EXPECTED else 1


if __name__ == "__main__":
    sys.exit(main())
