#!/usr/bin/env bash
# A run's life through the started program: completed, aborted by SIGHUP, noticed when killed, failed with the reason when misconfigured.
source "$(dirname "$0")/lib/program.sh"

start_server
start_daemon laptop-7
make_room "State transitions"
place laptop-7 script

chatroom start_agent "$ROOM" --role builder --wait >/dev/null || fail "start_agent --wait"
run_is running || fail "the run is $(agent_field run.state): expected running"
send "say hello" --wait || fail "the chain did not end well"
task_is completed || fail "task $TASK is $(task_field status): expected completed"
chatroom stop_agent "$ROOM" --role builder --wait >/dev/null || fail "stop_agent --wait"
until_true 10 "the run is completed" run_is completed
agent_is offline || fail "the agent is $(agent_field status): expected offline"
passed "a run goes validating, ready, preparing, running, completed"
for step in create validated prepare launch abort aborted; do has_event "run.$step" || fail "no event run.$step"; done
passed "each step is an event"

chatroom start_agent "$ROOM" --role builder --wait >/dev/null
send "hold this"
until_true 15 "the agent works" task_is in_progress
held_by=$(agent_field run.pid)
kill -HUP "$DAEMON"
until_true 15 "the task failed as aborted" task_is failed
task_field failure_reason | grep -qi abort || fail "the reason is $(task_field failure_reason)"
until_true 10 "the old process is gone" gone "$held_by"
until_true 20 "the agent is idle again" agent_is ready
alive "$DAEMON" || fail "SIGHUP ended the daemon"
[ "$(agent_field run.pid)" != "$held_by" ] || fail "the same process goes on"
passed "SIGHUP in the middle of a run: aborted, idle again, the same daemon"

killed=$(agent_field run.pid)
begun=$(now_ms)
kill -KILL "$killed"
until_true 5 "the death is noticed" agent_is restarting
say "    shown as restarting within $(($(now_ms) - begun)) ms"
until_true 20 "the agent is back" agent_is ready
[ "$(agent_field run.pid)" != "$killed" ] || fail "the killed process is still shown"
passed "a killed agent is noticed and comes back"

chatroom stop_agent "$ROOM" --role builder --wait >/dev/null
place laptop-7 missing
code=0
chatroom start_agent "$ROOM" --role builder --wait >"$WORK/start.out" 2>&1 || code=$?
[ "$code" -eq 9 ] || fail "start_agent --wait exited $code: expected 9; $(cat "$WORK/start.out")"
grep -q "/nowhere/agent" "$WORK/start.out" || fail "no reason in: $(cat "$WORK/start.out")"
run_is failed || fail "the run is $(agent_field run.state): expected failed"
agent_is dead_failed_revive || fail "the agent is $(agent_field status)"
passed "an invalid configuration fails with the reason"

say "$CHECKS passed, 0 failed"
