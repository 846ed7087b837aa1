#!/bin/sh
# An agent in a few lines of shell: waits for its task, says that it begins, does it, hands it on. Room and role come from CHATROOM_ROOM and CHATROOM_ROLE.
#   shell_agent.sh NEXT_ROLE
next=$1
answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
trap 'kill "$waiting" 2>/dev/null; exit 0' TERM INT HUP
while :; do
    chatroom wait_for_task --json >"$answer" &
    waiting=$!
    wait "$waiting"
    case $? in
        0) ;;
        6) exit 6 ;;
        *) continue ;;
    esac
    CHATROOM_CLAIM=$(sed -n 's/.*"claim": "\([^"]*\)".*/\1/p' "$answer")
    export CHATROOM_CLAIM
    text=$(sed -n 's/.*"text": "\([^"]*\)", "from".*/\1/p' "$answer")
    chatroom task_started >/dev/null
    chatroom report_progress --text "$CHATROOM_ROLE begins" >/dev/null
    chatroom handoff --next-role "$next" --text "$CHATROOM_ROLE did: $text" >/dev/null
done
