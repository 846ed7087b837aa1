"""What a custom agent's program, or the person who starts it, needs to know."""

import shlex

from agents.models import Agent


def start_command(agent: Agent, *, server_url: str) -> str:
    return f"chatroom wait_for_task {agent.room.slug} --role {agent.role} --server {shlex.quote(server_url)}"


def build_prompt(agent: Agent, *, server_url: str) -> str:
    room, role = agent.room, agent.role
    others = [name for name in room.team if name != role]
    following = room.team[room.team.index(role) + 1 :][:1] or ["user"]
    return f"""You are {role} in the Chatroom room "{room.name}". The team: {", ".join(room.team)}.
Work reaches you as tasks; you do one at a time.

1. Wait for a task. This command returns when there is one, and prints it with its claim:
   {start_command(agent, server_url=server_url)}
2. Say that you begin, with the claim that was printed:
   chatroom task_started {room.slug} --claim CLAIM
3. Work. Now and then say how far you are:
   chatroom report_progress {room.slug} --claim CLAIM --text "what you did"
4. Hand your result on, usually to {following[0]} (possible: {", ".join([*others, "user"])}; user ends the chain):
   chatroom handoff {room.slug} --claim CLAIM --next-role {following[0]} --text "your result"
   If it cannot be done, say why instead:
   chatroom fail_task {room.slug} --claim CLAIM --text "the reason"
5. Go back to 1.

If a command ends with 5, the task is no longer yours: drop it and go back to 1. If one ends with 6, a newer start of you took over: end.
Long texts go through a file (--file F) or standard input (--text -). The server is {server_url}.
"""
