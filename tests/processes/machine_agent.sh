#!/bin/sh
# The agent of the tests with machines. Its task says "hold": it works until it is ended; anything else is done at once. SIGUSR1: it ends with 3.
#   machine_agent.sh [stubborn]: ignores SIGTERM, and so do its child and a grandchild in a session of its own whose parent is gone
# After a lost connection its commands try again within this time, as the tests' own do.
export CHATROOM_RECONNECT_WITHIN=0.5
waiting=
trap 'exit 3' USR1
if [ "$1" = stubborn ]; then
    trap '' TERM INT HUP
    sleep 1000 &
    (setsid sleep 1000 &)
else
    trap 'kill "$waiting" 2>/dev/null; exit 0' TERM INT HUP
fi
answer=$(mktemp)
while :; do
    chatroom wait_for_task --json >"$answer" &
    waiting=$!
    wait "$waiting"
    case $? in
        0) ;;
        6) exit 6 ;;
        *) sleep 0.2; continue ;;
    esac
    CHATROOM_CLAIM=$(sed -n 's/.*"claim": "\([^"]*\)".*/\1/p' "$answer")
    export CHATROOM_CLAIM
    chatroom task_started >/dev/null
    case $(cat "$answer") in
        *'"text": "hold'*) while :; do sleep 0.2; done ;;
        *) chatroom handoff --next-role user --text "done" >/dev/null ;;
    esac
done
