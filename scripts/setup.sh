#!/usr/bin/env bash
# Makes .venv hold exactly what the given requirements file pins; does nothing when it already does.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}
python=${PYTHON:-python3}
# An editable install points at its directory: a checkout that was moved needs it anew.
wanted="$(cat requirements.txt requirements-dev.txt pyproject.toml | cksum) $PWD"
stamp=".venv/.installed-$requirements"
say() { printf '· %s\n' "$*"; }
fail() { printf 'chatroom: %s\n' "$*" >&2; exit 1; }

[ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && [ -x .venv/bin/chatroom ] && exit 0
started=$SECONDS

if ! .venv/bin/python -c '' 2>/dev/null; then
    command -v "$python" >/dev/null || fail "$python was not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.12"
    found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))') ||
        fail "$python is Python $found: expected 3.11 or newer; name another one: make PYTHON=python3.12"
    say "making .venv with Python $found"
    "$python" -m venv --clear .venv >/dev/null 2>&1 ||
        fail "'$python -m venv' failed: its venv module is missing (on Debian and Ubuntu: apt-get install python$found-venv)"
fi

say "installing $(grep -c '^[a-z].*==' "$requirements") pinned packages of $requirements (the first time takes a minute)"
install() { .venv/bin/python -m pip install --disable-pip-version-check --no-input "$@"; }
progress='/^ *Collecting /{ if (++n % 10 == 0) print "  " n " fetched" } /^Installing collected/{ print "  " n " fetched, unpacking" } { fflush() }'
install --progress-bar off --require-hashes --requirement "$requirements" | awk "$progress" ||
    fail "installing $requirements failed: see above; is the network there? 'make setup' continues where it stopped"
install --quiet --no-deps --no-build-isolation --config-settings editable_mode=compat --editable . || fail "installing Chatroom itself into .venv failed: see above"
# The development list contains the other one.
printf '%s' "$wanted" | tee "$stamp" >.venv/.installed-requirements.txt
say "set up in $((SECONDS - started)) s"
