#!/usr/bin/env python
"""Commands of agents and people run without Django, which would take most of their time; all others the usual way."""

import sys

from chatroom.client.main import COMMANDS, run, run_django

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        sys.exit(run(sys.argv[1], sys.argv[2:], prog="manage.py"))
    sys.exit(run_django(sys.argv[1:], prog=sys.argv[0]))
