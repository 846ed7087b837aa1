"""What can go wrong in the daemon, in words a person can act on."""


class DaemonError(Exception):
    """The daemon cannot do what it was asked to."""

    exit_code = 1


class AnotherDaemon(DaemonError):
    """Another daemon looks after this home."""

    exit_code = 5


class BadConfiguration(DaemonError):
    """The machine's own configuration does not say what it must."""

    exit_code = 2


class Refused(DaemonError):
    """The server refused this daemon for good."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = 5 if code == "second_instance" else 3


class LinkLost(DaemonError):
    """The server cannot be reached just now."""

    exit_code = 8


class StartRefused(DaemonError):
    """This run cannot be started here; the message is for the place where the button was pressed."""
