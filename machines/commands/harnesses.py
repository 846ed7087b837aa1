from machines.daemon.control import harness_arguments as arguments
from machines.daemon.control import show_harnesses as run

__all__ = ["arguments", "run"]
