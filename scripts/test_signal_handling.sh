#!/usr/bin/env bash
# Signals through the started program: SIGHUP ends neither daemon nor server; SIGTERM ends in time; SIGSTOP is noticed, SIGCONT mends; a lost server.
source "$(dirname "$0")/lib/program.sh"

start_server
start_daemon laptop-7
make_room "Signals"
place laptop-7 script
chatroom start_agent "$ROOM" --role builder --wait >/dev/null || fail "start_agent --wait"

kill -HUP "$DAEMON" "$UP"
until_true 20 "the run was aborted" has_event run.aborted
until_true 20 "the agent is ready again" agent_is ready
alive "$DAEMON" && alive "$UP" || fail "SIGHUP ended the daemon or the server"
get readyz >/dev/null || fail "the server does not serve after SIGHUP"
passed "SIGHUP ends neither daemon nor server; every run is aborted"

kill -STOP "$DAEMON"
begun=$(now_ms)
until_true 9 "the daemon is unresponsive" machine_is laptop-7 unresponsive
say "    unresponsive after $(($(now_ms) - begun)) ms"
until_true 10 "the machine is disconnected" machine_is laptop-7 disconnected
say "    disconnected after $(($(now_ms) - begun)) ms"
kill -CONT "$DAEMON"
until_true 15 "the machine is back" machine_is laptop-7 connected
passed "SIGSTOP of the daemon: 5 s warning, 10 s disconnected; SIGCONT: connected"

send "hold this"
until_true 20 "the agent works" task_is in_progress
pid=$(agent_field run.pid)
begun=$(now_ms)
kill -STOP "$pid"
until_true 9 "the warning" has_event run.stopped
say "    warned after $(($(now_ms) - begun)) ms"
until_true 13 "the frozen agent is dead" agent_is dead
say "    dead after $(($(now_ms) - begun)) ms"
kill -CONT "$pid"
until_true 15 "it works on, with its claim" agent_is working
[ "$(agent_field run.pid)" = "$pid" ] || fail "another process took over"
[ "$(task_field attempt)" = 1 ] || fail "the claim was lost"
passed "SIGSTOP of an agent: warning, dead, not restarted; SIGCONT: back with its claim"
chatroom tasks "$ROOM" cancel "$TASK" >/dev/null || fail "cancel the task"

begun=$(now_ms)
kill -TERM "$DAEMON"
until_true 16 "the daemon ended" gone "$DAEMON"
took=$(($(now_ms) - begun))
gone "$pid" || fail "an agent outlived its daemon"
say "    ended within $took ms"
[ "$took" -le 16000 ] || fail "SIGTERM took $took ms: expected at most 15 s"
passed "SIGTERM ends the daemon with its agents, in time"

start_daemon laptop-8 CHATROOM_ON_SERVER_LOSS=continue
place laptop-8 script
start_daemon_8=$DAEMON
chatroom restart_agent "$ROOM" --role builder --wait >/dev/null || fail "restart on laptop-8"
pid=$(agent_field run.pid)
kill -KILL "$UP"
until_true 15 "the server is gone" gone "$UP"
sleep 3 # nothing to wait on: the point is that nothing happens
alive "$pid" && alive "$start_daemon_8" || fail "the agent did not go on while the server was away"
seen=$(date -u +%Y-%m-%dT%H:%M:%S)
start_server
until_true 60 "the daemon is back" seen_since laptop-8 "$seen"
until_true 45 "the agent waits again" agent_waits
[ "$(agent_field run.pid)" = "$pid" ] || fail "the agent was started anew"
passed "the server is killed: agents go on, and are found again"
kill -TERM "$start_daemon_8"
until_true 16 "the daemon ended" gone "$start_daemon_8"

start_daemon laptop-9 CHATROOM_ON_SERVER_LOSS=abort
place laptop-9 script
chatroom restart_agent "$ROOM" --role builder --wait >/dev/null || fail "restart on laptop-9"
pid=$(agent_field run.pid)
begun=$(now_ms)
kill -KILL "$UP"
until_true 45 "the agent is cleaned up" gone "$pid"
say "    cleaned up after $(($(now_ms) - begun)) ms"
alive "$DAEMON" || fail "the daemon ended with the server"
passed "with ON_SERVER_LOSS=abort the agents are cleaned up"

say "$CHECKS passed, 0 failed"
