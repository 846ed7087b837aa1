"""Is the port free, and if not, whose is it?"""

import socket
import time

import psutil

from chatroom.up.console import CannotStart

WILDCARDS = {"0.0.0.0", "::", ""}


def check_port(host: str, port: int) -> None:
    """Raises CannotStart when nobody can listen there. A moment of patience: the web process of an `up` that was killed is just going."""
    for patience in (0.2, 0.3, 0.5):
        if try_to_bind(host, port) is None:
            return
        time.sleep(patience)
    error = try_to_bind(host, port)
    if error is None:
        return
    if isinstance(error, socket.gaierror):
        raise CannotStart(f"--host {host}: {error.strerror}: expected an address of this machine, for example 127.0.0.1")
    if isinstance(error, PermissionError):
        raise CannotStart(f"port {port} needs more rights than this process has: choose one above 1023: --port 8000")
    if holder := find_holder(port):
        raise CannotStart(f"port {port} on {host} is in use by {holder}: end that, or choose another port: --port {port + 1}")
    raise CannotStart(f"port {port} on {host} cannot be used: {error.strerror}: choose another one: --port {port + 1}")


def try_to_bind(host: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _name, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error
    return None


def find_holder(port: int) -> str:
    """Name and PID of the process that listens there; without the right to know, nothing."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:
        return ""
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port and connection.pid:
            try:
                return f"{psutil.Process(connection.pid).name()} (PID {connection.pid})"
            except psutil.Error:
                return f"PID {connection.pid}"
    return ""


def address_of(host: str, port: int) -> str:
    """The address under which this machine reaches a server listening on `host`."""
    if host in WILDCARDS:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names_of(host: str) -> list[str]:
    """Every name by which browsers may call a server that listens on `host`."""
    names = ["localhost", "127.0.0.1", "[::1]"]
    if host not in WILDCARDS:
        names.append(f"[{host}]" if ":" in host else host)
        return list(dict.fromkeys(names))
    names.append(socket.gethostname().lower())
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET:
                names.append(address.address)
            elif address.family == socket.AF_INET6:
                names.append(f"[{address.address.split('%')[0]}]")
    return list(dict.fromkeys(names))
