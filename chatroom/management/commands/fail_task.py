from chatroom.management.commands._client import client_command

Command = client_command("fail_task")
