#!/bin/sh
# The agent of the scripts: does what the text of its task says. hold: works until it is ended · crash: exits with 3 · fail: says it can't · else: done.
trap 'exit 0' TERM INT HUP
while :; do
    answer=$(chatroom wait_for_task --json) || { [ $? -eq 6 ] && exit 6; continue; }
    CHATROOM_CLAIM=$(printf %s "$answer" | sed -n 's/.*"claim": "\([^"]*\)".*/\1/p')
    export CHATROOM_CLAIM
    chatroom task_started >/dev/null
    case $answer in
        *'"text": "hold'*) echo "holding"; while :; do sleep 1; done ;;
        *'"text": "crash'*) echo "crashing"; exit 3 ;;
        *'"text": "fail'*) chatroom fail_task --text "told to fail" >/dev/null ;;
        *) chatroom handoff --next-role user --text "done" >/dev/null ;;
    esac
done
