"""Prints the path of Chromium, or fails naming the command that installs it: a browser test is never silently skipped."""

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "apt-get install -y --no-install-recommends chromium"


def main() -> int:
    if named := os.environ.get("CHROMIUM"):
        found = shutil.which(named)
        problem = f"CHROMIUM={named}: no such program"
    else:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        problem = "Chromium was not found: the tests need a real browser"
    if found is None:
        print(f"chatroom: {problem}; install it with '{INSTALL}', or name yours: CHROMIUM=/path/to/chromium", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
