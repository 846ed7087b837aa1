#!/bin/sh
# An agent of the chaos test: hands its task on to the next role, by the commands alone. planner → builder → reviewer → user.
case $CHATROOM_ROLE in planner) next=builder ;; builder) next=reviewer ;; *) next=user ;; esac

# The same command again is the same act: its key derives from the claim. Given up only when the claim is no longer ours.
insist() {
    until "$@" >/dev/null; do
        [ $? -eq 5 ] && return 5
        sleep 0.2
    done
}

while :; do
    answer=$(chatroom wait_for_task --json) || { [ $? -eq 6 ] && exit 6; continue; }
    CHATROOM_CLAIM=$(printf %s "$answer" | sed -n 's/.*"claim": "\([^"]*\)".*/\1/p')
    job=$(printf %s "$answer" | sed -n 's/.*"text": "\(job-[0-9]*\).*/\1/p')
    export CHATROOM_CLAIM
    insist chatroom task_started || continue
    insist chatroom handoff --next-role "$next" --text "$job by $CHATROOM_ROLE"
done
