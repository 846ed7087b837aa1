from machines.daemon.control import home_arguments as arguments
from machines.daemon.control import show_status as run

__all__ = ["arguments", "run"]
