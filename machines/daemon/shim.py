"""Starts one program, outlives the daemon, and writes down how the program ended.

Run as `python -S -E shim.py RUN_DIRECTORY/spec.json [LOCK_FD]`; standard library only, imports nothing of ours.
The run directory belongs to exactly one life of one program:

    spec.json   what to start: argv, env, cwd, stdin (a path or null), log_limit, grace, leftover_grace
    lock        locked (flock) for as long as the shim lives, so "held" means "alive"; taken by the daemon before it forks
    pid.json    who runs: shim and program with their start times, the boot id
    stop.json   written by the daemon before it sends SIGTERM: {"grace": seconds}
    output-*    the program's output in segments named by the offset of their first byte: first and newest ones are kept
    exit.json   how the program ended; there as soon as it has, a moment before the last of its descendants is gone

On Linux the shim is a child subreaper: whoever the program leaves behind (grandchildren, double-forked, in sessions of their own)
becomes the shim's child and is ended before the shim ends; and the program dies with a killed shim (PR_SET_PDEATHSIG).
Elsewhere neither exists: only the program's process group is ended.
"""

# pathlib would double the start-up time:
# ruff: noqa: PTH100, PTH105, PTH108, PTH110, PTH118, PTH120, PTH123, PTH208
from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # typing itself would cost a third of the start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import IO, Any, NoReturn

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
RESERVED = 64 * 1024  # room for exit.json, kept from the start so that a full disk cannot lose it
KEPT_TAIL = 8 * 1024
SEGMENTS = 4
READ_SIZE = 64 * 1024
REFUSED_HELD, REFUSED_USED = 3, 4


def load_prctl() -> Callable[[int, int], int | None]:
    if not sys.platform.startswith("linux"):
        return lambda _option, _value: None
    import ctypes  # not at the top: elsewhere it is not needed

    libc = ctypes.CDLL(None, use_errno=True)
    return lambda option, value: libc.prctl(option, value, 0, 0, 0)


def write_durably(path: str, content: dict[str, Any]) -> None:
    """All or nothing, also through a power cut."""
    temporary = path + ".tmp"
    with open(temporary, "wb") as file:
        file.write(json.dumps(content).encode())
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stat_field(pid: int | str, place: int) -> int | None:
    """A number of /proc/PID/stat, counted after the name; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[place])
    except (OSError, IndexError, ValueError):
        return None


def start_time(pid: int) -> int | None:
    return stat_field(pid, 19)  # clock ticks from boot: tells a reused PID


def boot_id() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def descendants(root: int) -> list[int]:
    """PIDs below root, by one look at /proc; a fork meanwhile is caught by the next look."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (parent := stat_field(name, 1)) is not None:
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def signal_one(send: Callable[[int, int], None], pid: int, number: int) -> bool:
    """False when nobody is there any more."""
    try:
        send(pid, number)
    except OSError:
        return False
    return True


class Output:
    """Segments of limit / SEGMENTS bytes; the first and the newest are kept, so memory and disk stay bounded."""

    def __init__(self, directory: str, limit: int) -> None:
        self.directory, self.size = directory, max(limit // SEGMENTS, 4096)
        self.offset, self.tail = 0, b""
        self.file: IO[bytes] | None = None
        self.room = 0
        self.names: list[str] = []

    def write(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-KEPT_TAIL:]
        while data:
            if self.file is None or self.room == 0:
                self.next_segment()
            part, data = data[: self.room], data[self.room :]
            self.write_part(part)

    def write_part(self, part: bytes) -> None:
        try:
            if self.file is None:
                raise OSError
            self.file.write(part)
            self.room -= len(part)
        except OSError:  # a full disk must not stop the program: these bytes are a gap in the log
            self.close()
        self.offset += len(part)

    def next_segment(self) -> None:
        self.close()
        name = os.path.join(self.directory, f"output-{self.offset:015d}.log")
        self.room = self.size
        try:
            self.file = open(name, "ab", buffering=0)  # noqa: SIM115
            self.names.append(name)
            if len(self.names) > SEGMENTS:
                os.unlink(self.names.pop(1))
        except OSError:
            self.file = None

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def last_lines(self, count: int = 20) -> list[str]:
        return [line.rstrip("\r") for line in self.tail.decode("utf-8", "replace").split("\n") if line.strip()][-count:]


class Shim:
    def __init__(self, directory: str, lock: int) -> None:
        self.directory, self.lock = directory, lock
        with open(self.path("spec.json"), encoding="utf-8") as file:
            self.spec: dict[str, Any] = json.load(file)
        self.output = Output(directory, self.spec.get("log_limit", 16 * 1024 * 1024))
        self.prctl = load_prctl()
        self.subreaper = self.prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
        self.program = 0
        self.status: int | None = None
        self.launch_error: str | None = None
        self.deadline: float | None = None
        self.stop_noted = self.stop_requested = False
        self.started = time.time()
        self.wakeup, self.pipe = -1, -1

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def run(self) -> None:
        self.reserve_exit()
        self.prepare_signals()
        clock = time.monotonic()
        self.launch()
        if self.launch_error is None:
            self.write_pids()
            self.watch(until=lambda: self.status is not None)
            self.drain()
        self.write_exit(time.monotonic() - clock)
        self.end_leftovers()

    def reserve_exit(self) -> None:
        with open(self.path("exit.reserved"), "wb") as file:
            file.write(b"\0" * RESERVED)
            file.flush()
            os.fsync(file.fileno())

    def prepare_signals(self) -> None:
        self.wakeup, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.signal(signal.SIGTERM, self.note_stop)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # whoever started the daemon may have blocked some: the program inherits this

    def note_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_noted = True

    def begin_stop(self) -> None:
        self.stop_noted, self.stop_requested = False, True
        grace = self.spec.get("grace", 5.0)
        try:
            with open(self.path("stop.json"), encoding="utf-8") as file:
                grace = float(json.load(file).get("grace", grace))
        except (OSError, ValueError):
            pass  # sent by hand: the spec's grace holds
        self.deadline = time.monotonic() + grace
        self.signal_all(signal.SIGTERM)
        self.signal_all(signal.SIGCONT)  # a frozen one would never see the first

    def launch(self) -> None:
        self.pipe, output = os.pipe()
        errors, report = os.pipe()
        stdin = os.open(self.spec.get("stdin") or os.devnull, os.O_RDONLY)
        me = os.getpid()
        self.program = os.fork()
        if self.program == 0:
            self.become_program(me, stdin=stdin, output=output, report=report)
        for descriptor in (output, report, stdin):
            os.close(descriptor)
        os.set_blocking(self.pipe, False)
        problem = os.read(errors, 4096)  # ends at a successful exec: the write end is close-on-exec
        os.close(errors)
        if problem:
            os.waitpid(self.program, 0)
            self.launch_error = problem.decode("utf-8", "replace")

    def become_program(self, parent: int, *, stdin: int, output: int, report: int) -> NoReturn:
        """In the child: never returns."""
        try:
            os.setsid()
            self.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(number, signal.SIG_DFL)
            os.dup2(stdin, 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.spec["cwd"])
            os.execvpe(self.spec["argv"][0], self.spec["argv"], self.spec["env"])
        except OSError as error:
            os.write(report, f"{error.filename or self.spec['argv'][0]}: {error.strerror}".encode())
        except BaseException as error:  # whatever it is: two shims must never come out of one fork
            os.write(report, repr(error).encode())
        os._exit(127)

    def write_pids(self) -> None:
        me = os.getpid()
        write_durably(
            self.path("pid.json"),
            {
                "shim": {"pid": me, "start": start_time(me)},
                "program": {"pid": self.program, "start": start_time(self.program)},
                "boot": boot_id(),
                "started_at": self.started,
            },
        )

    def watch(self, until: Callable[[], bool]) -> None:
        """Pumps output and reaps children until the condition holds; kills when the deadline has passed."""
        while not until():
            if self.stop_noted:
                self.begin_stop()
            timeout = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            if timeout == 0.0:
                self.signal_all(signal.SIGKILL)
                timeout = 0.05  # again, until nobody is left: a fork may have run ahead of the look at /proc
            self.wait_for_anything(timeout)
            self.reap()

    def wait_for_anything(self, timeout: float | None) -> None:
        watched = [self.wakeup] if self.pipe < 0 else [self.wakeup, self.pipe]
        ready, _, _ = select.select(watched, [], [], timeout)
        if self.wakeup in ready:
            os.read(self.wakeup, 4096)
        if self.pipe in ready:
            self.pump()

    def pump(self) -> bool:
        """One read; True if there was something. The pipe is closed when its last writer is gone."""
        try:
            data = os.read(self.pipe, READ_SIZE)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            return False
        if not data:
            os.close(self.pipe)
            self.pipe = -1
            return False
        self.output.write(data)
        return True

    def drain(self) -> None:
        """What the program wrote before its end; bounded, since somebody it left behind may write for ever."""
        for _ in range(32):
            if self.pipe < 0 or not self.pump():
                return

    def reap(self) -> bool:
        """Collects every ended child; True when none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self.program:
                self.status = status

    def signal_all(self, number: int) -> None:
        targets = descendants(os.getpid()) if self.subreaper else []  # looked for first: the group's end would hide some
        signal_one(os.killpg, self.program, number)
        for pid in targets:
            signal_one(os.kill, pid, number)

    def write_exit(self, seconds: float) -> None:
        code = 0 if self.status is None else os.waitstatus_to_exitcode(self.status)
        content = {
            "code": code if self.status is not None and code >= 0 else None,
            "signal": -code if code < 0 else None,
            "error": self.launch_error,
            "stop_requested": self.stop_requested,
            "started_at": self.started,
            "ended_at": time.time(),
            "seconds": round(seconds, 3),
            "output_bytes": self.output.offset,
            "lines": self.output.last_lines(),
        }
        with open(self.path("exit.reserved"), "r+b") as file:  # in place: the room is ours already
            file.write(json.dumps(content).encode())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path("exit.reserved"), self.path("exit.json"))
        sync_directory(self.directory)

    def end_leftovers(self) -> None:
        if self.launch_error is None and not self.nobody_left():
            if self.deadline is None:
                self.deadline = time.monotonic() + self.spec.get("leftover_grace", 0.3)
            self.signal_all(signal.SIGTERM)
            self.signal_all(signal.SIGCONT)
            self.watch(until=self.nobody_left)
        self.drain()
        self.output.close()

    def nobody_left(self) -> bool:
        if not self.reap():
            return False
        return self.subreaper or not signal_one(os.killpg, self.program, 0)


def take_lock(directory: str, inherited: int | None) -> int:
    descriptor = inherited if inherited is not None else os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, False)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"{directory}: another shim holds the lock\n")
        sys.exit(REFUSED_HELD)
    return descriptor


def main(arguments: list[str]) -> None:
    directory = os.path.dirname(os.path.abspath(arguments[0]))
    lock = take_lock(directory, int(arguments[1]) if len(arguments) > 1 else None)
    for name in ("pid.json", "exit.json"):
        if os.path.exists(os.path.join(directory, name)):
            sys.stderr.write(f"{directory}: {name} exists, this run has had its life\n")
            sys.exit(REFUSED_USED)
    if os.getpid() != os.getsid(0):
        os.setsid()
    Shim(directory, lock).run()


if __name__ == "__main__":
    main(sys.argv[1:])
