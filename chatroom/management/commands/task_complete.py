from chatroom.management.commands._client import client_command

Command = client_command("task_complete")
