#!/usr/bin/env bash
# Runs every test on the stack the environment names, in four pytest calls, and prints the table of scenarios.
# Sync Playwright and pytest-asyncio exclude each other in one process; the tests with real processes want few neighbours.
set -uo pipefail
cd "$(dirname "$0")/.."
records=${1:?expected a directory for the records}
pytest=(.venv/bin/python -m pytest --durations=5)
parallel=${TEST_PROCESSES:-auto}
fail() { printf 'chatroom: %s\n' "$*" >&2; exit 1; }

chromium=$(.venv/bin/python scripts/find_chromium.py) || exit 1
unset CHATROOM_HOME
export CHATROOM_REDIS_PREFIX="chatroom-test-$$"
if [ -n "${DATABASE_URL:-}" ]; then
    .venv/bin/python scripts/check_services.py || exit 1
fi
rm -rf "$records"
mkdir -p "$records"
failed=()
call() {
    local name=$1 started=$SECONDS status
    shift
    printf '\n== %s\n' "$name"
    CHROMIUM=$chromium CHATROOM_TEST_RECORD="$records/$name.json" "${pytest[@]}" "$@" </dev/null 2>&1 | tee "$records/$name.log"
    status=${PIPESTATUS[0]}
    [ $status -eq 0 ] || failed+=("$name")
    printf '== %s: %s in %d s\n' "$name" "$([ $status -eq 0 ] && echo passed || echo "FAILED ($status)")" $((SECONDS - started))
}
call rules tests --ignore=tests/processes --ignore=tests/browser --ignore=tests/simulation -n "$parallel" --dist loadfile
call simulation tests/simulation -n "$parallel" --dist worksteal
call processes tests/processes -n "${TEST_SERVERS:-3}" --dist loadfile --no-loadscope-reorder
call browser tests/browser
echo
.venv/bin/python scripts/scenario_table.py "$records" || failed+=(scenarios)
echo
tail -qn 1 "$records"/*.log
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
