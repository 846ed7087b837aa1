from machines.daemon.control import stop as run
from machines.daemon.control import stop_arguments as arguments

__all__ = ["arguments", "run"]
