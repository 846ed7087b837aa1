from chatroom.management.commands._client import client_command

Command = client_command("wait_for_task")
