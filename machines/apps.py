from django.apps import AppConfig


class MachinesConfig(AppConfig):
    name = "machines"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from chatroom.contributions import contribute
        from machines import receivers, sweep  # noqa: F401  (register themselves)
        from machines.services import moving  # noqa: F401  (its job)

        contribute(part="machines.offer.DemoOfferPart", companion="machines.local_daemon.LocalDaemon")
        contribute(agent_extra="machines.panel.agent_extras", cards="machines.panel.machine_cards", goings="machines.panel.machine_goings")
        for name in ("FleetList", "MachinesList", "EnrolmentsList"):
            contribute(list=f"machines.fleet.{name}")
