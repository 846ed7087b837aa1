from django.apps import AppConfig


class AgentsConfig(AppConfig):
    name = "agents"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from agents import receivers, sweep  # noqa: F401  (register themselves)

        self.register_parts()

    def register_parts(self) -> None:
        """What this app puts on a room's page."""
        from chatroom.contributions import contribute

        contribute(part="agents.panel.AgentsPart", cards="agents.panel.agent_cards", goings="agents.panel.agent_goings")
        contribute(cards="agents.panel.waiting_cards")
