from machines.daemon.main import arguments, run

__all__ = ["arguments", "run"]
