#!/usr/bin/env bash
# Errors reach people: bad credentials, a crash in the middle of a run, a failed task in a fail-fast room.
source "$(dirname "$0")/lib/program.sh"

start_server
start_daemon laptop-7
make_room "Error recovery"

for words in "room_status $ROOM" "wait_for_task $ROOM --role builder --timeout 5" "agent_daemon --name x --home $WORK/bad"; do
    code=0
    # shellcheck disable=SC2086
    timeout 30 chatroom $words --server "http://127.0.0.1:$PORT" --token chatroom_person_wrong >"$WORK/bad.out" 2>&1 || code=$?
    [ "$code" -eq 3 ] || fail "${words%% *} with a wrong token exited $code: expected 3; $(cat "$WORK/bad.out")"
    grep -qi "token\|sign" "$WORK/bad.out" || fail "no message in: $(cat "$WORK/bad.out")"
done
passed "bad credentials end the command non-zero, with the message"

place laptop-7 script
send "crash now"
until_true 30 "the crash is noticed" has_event agent.process_exited
until_true 60 "the task failed after its crashes" task_is failed
task_field failure_reason | grep -q "exit code 3" || fail "the reason is $(task_field failure_reason)"
passed "an error in the middle of a run is noticed, and a poison task fails with the reason"
send "go on" --wait || fail "the agent does not live on with the next task"
passed "the agent lives on"

ROOM=$(chatroom create_room "Fail fast" --team builder,reviewer --fail-fast --json | field slug)
place laptop-7 script builder
place laptop-7 script reviewer
send "hold on" --to reviewer
held=$TASK
until_true 30 "the reviewer works" task_is in_progress
holder=$(agent_field run.pid reviewer)
send "fail please" --to builder
until_true 30 "the builder's task failed" task_is failed
TASK=$held
until_true 15 "the other task failed with it" task_is failed
task_field failure_reason | grep -qi abort || fail "the reason is $(task_field failure_reason)"
until_true 15 "the other run is aborted" gone "$holder"
passed "in a fail-fast room a failed task aborts the others"

say "$CHECKS passed, 0 failed"
