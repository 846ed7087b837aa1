# Sourced by the scripts beside: a started program of its own, with short settings, and words for what is expected of it.
# DATABASE_URL and REDIS_URL choose the stack; without them SQLite and the embedded Valkey.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export PATH="$ROOT/.venv/bin:$PATH"
WORK=$(mktemp -d)
export CHATROOM_HOME="$WORK/home" XDG_CONFIG_HOME="$WORK/config" XDG_STATE_HOME="$WORK/state" PYTHONUNBUFFERED=1
export CHATROOM_RESTART_DELAY=0.5 CHATROOM_SWEEP_INTERVAL=1 CHATROOM_RECONNECT_WITHIN=0.5 CHATROOM_REDIS_PREFIX="scripts-$$"
export CHATROOM_HEARTBEAT_INTERVAL=2 CHATROOM_HEARTBEAT_TTL=35 CHATROOM_DAEMON_HEARTBEAT_INTERVAL=2
unset CHATROOM_SERVER CHATROOM_TOKEN CHATROOM_ROOM CHATROOM_ROLE CHATROOM_CLAIM
UP= CHECKS=0 ROOM=

say() { printf '%s\n' "$*"; }
fail() { say "FAILED: $*"; tail -n 20 "$WORK/up.log" "$WORK"/daemon-*.log 2>/dev/null || true; exit 1; }
passed() { CHECKS=$((CHECKS + 1)); say "ok: $*"; }
now_ms() { date +%s%3N; }

# until_true SECONDS WHAT COMMAND…: waits until the command succeeds; a limit that passes fails the script.
until_true() {
    local limit=$(($(now_ms) + $1 * 1000)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$(now_ms)" -lt "$limit" ] || fail "not within its limit: $what"
        sleep 0.1
    done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

start_server() {
    PORT=${PORT:-$(free_port)}
    python "$ROOT/manage.py" up --port "$PORT" --no-demo --no-daemon >>"$WORK/up.log" 2>&1 </dev/null &
    UP=$!
    until_true 180 "the server is ready" is_ready_or_ended
    ! gone "$UP" || fail "the server ended while it started"
}

# start_daemon NAME [VARIABLE=VALUE…]: a daemon with a home of its own, which offers the agent beside this file. Its PID is in DAEMON.
start_daemon() {
    local name=$1
    shift
    mkdir -p "$WORK/work"
    printf '[harnesses.script]\ncommand = ["%s"]\n\n[harnesses.missing]\ncommand = ["/nowhere/agent"]\n' "$ROOT/scripts/lib/agent.sh" >"$WORK/harnesses.toml"
    env "$@" chatroom agent_daemon --name "$name" --home "$WORK/daemon-$name" --allow-dir "$WORK/work" --harnesses "$WORK/harnesses.toml" \
        >>"$WORK/daemon-$name.log" 2>&1 </dev/null &
    DAEMON=$!
    until_true 30 "machine $name is connected" machine_is "$name" connected
}

owner() { cat "$CHATROOM_HOME/owner.token"; }
get() { python3 -E -S "$ROOT/scripts/lib/get.py" "http://127.0.0.1:$PORT/$1" "${@:2}"; }
is_ready_or_ended() { gone "$UP" || get readyz; }
api() { get "api/v1/$1" "$(owner)"; }
field() { python3 -c 'import json, sys; value = json.load(sys.stdin)
for key in sys.argv[1].split("."): value = value[int(key)] if key.isdigit() else (value or {}).get(key)
print("" if value is None else value)' "$1"; }

make_room() { ROOM=$(chatroom create_room "$1" --team solo "${@:2}" --json | field slug); }
place() { chatroom configure_agent "$ROOM" --role "${3:-builder}" --kind remote --machine "$1" --harness "$2" --dir "$WORK/work" --mode loop >/dev/null; }
send() { TASK=$(chatroom send_message "$ROOM" --text "$1" --json "${@:2}" | field task); }

agent_json() { api "rooms/$ROOM" | python3 -c 'import json, sys; print(json.dumps(next(a for a in json.load(sys.stdin)["agents"] if a["role"] == sys.argv[1])))' "${1:-builder}"; }
agent_field() { agent_json "${2:-builder}" | field "$1"; }
task_field() { api "rooms/$ROOM/tasks/$TASK" | field "$1"; }
agent_is() { [ "$(agent_field status "${2:-builder}")" = "$1" ]; }
agent_waits() { agent_is ready && [ "$(agent_field waiting)" = True ]; }
run_is() { [ "$(agent_field run.state)" = "$1" ]; }
task_is() { [ "$(task_field status)" = "$1" ]; }
machine_is() { [ "$(api "machines/$1" | field status)" = "$2" ]; }
seen_since() { [[ "$(api "machines/$1" | field last_seen_at)" > "$2" ]]; }
has_event() { api "rooms/$ROOM/events?limit=500" | grep -q "\"name\": \"$1\""; }
alive() { kill -0 "$1" 2>/dev/null; }
gone() { ! alive "$1" || grep -q '^State:.Z' "/proc/$1/status"; }

clean_up() {
    local code=$?
    trap - EXIT
    for pid in ${DAEMONS:-} ${DAEMON:-} $UP; do kill -CONT "$pid" 2>/dev/null || true; kill -TERM "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$WORK"
    exit "$code"
}
trap clean_up EXIT
