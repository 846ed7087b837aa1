from django.apps import AppConfig


class ChatroomConfig(AppConfig):
    name = "chatroom"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from chatroom import notices, sweep  # noqa: F401  (register their jobs and steps)

        self.register_parts()

    def register_parts(self) -> None:
        """What this app puts on a room's page."""
        from chatroom.contributions import contribute

        for part in ("stream.StreamPart", "board.WorkPart", "panel.AttentionPart", "panel.PeoplePart"):
            contribute(part=f"chatroom.{part}")
        contribute(cards="chatroom.panel.task_cards", goings="chatroom.panel.task_goings", list="chatroom.nav.RoomsList")
