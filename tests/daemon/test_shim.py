import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemon.processes import SHIM, Shims, ended, eventually, is_running, marked, output, read, shims_in, started

# A grandchild in its own session, twice forked: no process group and no parent leads to it.
ESCAPED = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open("escaped", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("escaped"):
    time.sleep(0.01)
"""

# As whoever starts a daemon may leave them to it: nohup, a shell's background job, another supervisor.
DEAF = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def shims(tmp_path: Path) -> Iterator[Shims]:
    yield from shims_in(tmp_path)


def held(directory: Path) -> bool:
    with (directory / "lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_the_exit_code_and_the_last_lines_are_written_down(shims: Shims) -> None:
    directory, shim = shims.start("echo to out; echo to err >&2; exit 3")
    assert shim.wait(10) == 0
    exit_ = read(directory / "exit.json")
    assert (exit_["code"], exit_["signal"], exit_["lines"]) == (3, None, ["to out", "to err"])
    assert exit_["stop_requested"] is False
    assert output(directory) == b"to out\nto err\n"


def test_a_signal_is_written_down_as_one(shims: Shims) -> None:
    directory, _ = shims.start("kill -SEGV $$")
    exit_ = ended(directory)
    assert (exit_["code"], exit_["signal"]) == (None, signal.SIGSEGV)


def test_the_environment_is_the_given_one_and_nothing_else(shims: Shims) -> None:
    directory, shim = shims.start([sys.executable, "-S", "-E", "-c", "import os; print(sorted(os.environ), os.getcwd())"])
    shim.wait(10)
    names = sorted({"PATH", "MARKER", "LC_CTYPE"})  # Python itself sets the last one
    assert output(directory).decode().strip() in {f"{names} {directory}", f"{sorted({'PATH', 'MARKER'})} {directory}"}


def test_standard_input_is_at_its_end_at_once(shims: Shims) -> None:
    directory, shim = shims.start("cat; echo done")
    shim.wait(10)
    assert output(directory) == b"done\n"


def test_standard_input_is_fed_from_a_file_then_ends(shims: Shims, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("work $(touch x) `touch y`\n")
    directory, shim = shims.start("cat; echo done", stdin=str(tmp_path / "prompt"))
    shim.wait(10)
    assert output(directory) == b"work $(touch x) `touch y`\ndone\n"


def test_a_program_that_cannot_be_started_says_why(shims: Shims) -> None:
    directory, shim = shims.start(["/no/such/program"])
    shim.wait(10)
    exit_ = read(directory / "exit.json")
    assert exit_["code"] is None
    assert exit_["error"] == "/no/such/program: No such file or directory"
    assert not (directory / "pid.json").exists()


@pytest.mark.parametrize("under", [[], [sys.executable, "-S", "-c", DEAF]], ids=["plainly", "with every signal ignored and blocked"])
def test_the_program_gets_ordinary_signals_and_its_own_session(shims: Shims, under: list[str]) -> None:
    directory, shim = shims.start("grep -E 'Sig(Ign|Blk)' /proc/self/status; cut -d' ' -f1,5,6 /proc/$$/stat", under=under)
    shim.wait(10)
    lines = output(directory).decode().splitlines()
    # The C library keeps two for itself that nobody can set: they stay as they were found.
    settable = sum(1 << (number - 1) for number in signal.valid_signals())
    assert [int(line.split()[1], 16) & settable for line in lines[:2]] == [0, 0]
    assert len(set(lines[2].split())) == 1


def test_the_lock_is_held_exactly_as_long_as_the_shim_lives(shims: Shims) -> None:
    directory, shim = shims.start("exec sleep 600")
    started(directory)
    assert held(directory)
    shim.terminate()
    shim.wait(10)
    assert not held(directory)


def test_a_second_shim_in_the_same_run_is_refused(shims: Shims) -> None:
    directory, _ = shims.start("exec sleep 600")
    pids = started(directory)
    second = shims.again(directory)
    assert second.wait(10) == 3
    assert second.stderr is not None
    assert b"another shim holds the lock" in second.stderr.read()
    assert read(directory / "pid.json") == pids
    assert len(marked(shims.marker)) == 1


def test_a_run_that_had_its_life_is_not_started_again(shims: Shims) -> None:
    directory, shim = shims.start("echo once >> count")
    shim.wait(10)
    assert shims.again(directory).wait(10) == 4
    assert (directory / "count").read_text() == "once\n"


def test_an_inherited_lock_is_kept_without_a_gap(shims: Shims, tmp_path: Path) -> None:
    directory, first = shims.start("exec sleep 600", name="spec")
    started(directory)
    first.terminate()
    first.wait(10)
    for name in ("pid.json", "exit.json"):
        (directory / name).unlink()
    lock = os.open(directory / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [sys.executable, "-S", "-E", str(SHIM), str(directory / "spec.json"), str(lock)]
    with subprocess.Popen(command, pass_fds=[lock]) as shim:
        os.close(lock)
        assert held(directory)
        program = started(directory)["program"]["pid"]
        assert [link for link in Path(f"/proc/{program}/fd").iterdir() if link.readlink().name == "lock"] == []
        assert held(directory)
        shim.terminate()


def test_a_shim_started_with_every_signal_ignored_and_blocked_still_stops_its_program(shims: Shims) -> None:
    directory, shim = shims.start("exec sleep 600", under=[sys.executable, "-S", "-c", DEAF], grace=30)
    started(directory)
    shim.terminate()
    shim.wait(10)
    assert (ended(directory)["signal"], ended(directory)["stop_requested"]) == (signal.SIGTERM, True)


@pytest.mark.processes
@pytest.mark.scenario(45)
def test_stop_ends_a_stubborn_program_with_all_its_descendants(shims: Shims) -> None:
    directory, shim = shims.start([sys.executable, "-c", ESCAPED + "\nwhile True: time.sleep(600)"], grace=0.3)
    eventually((directory / "escaped").read_text)
    assert len(marked(shims.marker)) == 2
    shim.terminate()
    assert shim.wait(10) == 0
    assert marked(shims.marker) == []
    assert ended(directory)["signal"] == signal.SIGKILL
    assert ended(directory)["stop_requested"] is True


def test_an_obedient_program_is_given_its_time(shims: Shims) -> None:
    directory, shim = shims.start("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.02; done", grace=30)
    eventually(lambda: output(directory))
    shim.terminate()
    shim.wait(10)
    assert ended(directory)["code"] == 7
    assert output(directory).endswith(b"bye\n")  # the shell says "Terminated" of its own sleep


def test_the_grace_of_the_stop_file_wins(shims: Shims) -> None:
    directory, shim = shims.start("trap '' TERM; echo up; while :; do sleep 0.02; done", grace=600)
    eventually(lambda: output(directory))
    (directory / "stop.json").write_text('{"grace": 0.1}')
    shim.terminate()
    assert shim.wait(10) == 0
    assert ended(directory)["signal"] == signal.SIGKILL


def test_a_frozen_program_is_stopped_too(shims: Shims) -> None:
    directory, shim = shims.start("trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done", grace=30)
    eventually(lambda: output(directory))
    os.kill(started(directory)["program"]["pid"], signal.SIGSTOP)
    shim.terminate()
    shim.wait(10)
    assert ended(directory)["code"] == 7


def test_what_a_program_leaves_behind_is_ended_after_it(shims: Shims) -> None:
    directory, shim = shims.start([sys.executable, "-c", ESCAPED])
    shim.wait(15)
    assert ended(directory)["code"] == 0
    assert not is_running(int((directory / "escaped").read_text()))
    assert marked(shims.marker) == []


def test_the_exit_is_known_before_the_leftovers_are_gone(shims: Shims) -> None:
    directory, shim = shims.start("(trap '' TERM; while :; do sleep 0.05; done) & exit 5", leftover_grace=600)
    assert ended(directory)["code"] == 5
    assert shim.poll() is None
    assert held(directory)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the parent-death signal exists on Linux only")
def test_a_killed_shim_takes_its_program_with_it(shims: Shims) -> None:
    directory, shim = shims.start("exec sleep 600")
    program = started(directory)["program"]["pid"]
    shim.kill()
    eventually(lambda: not is_running(program))
    assert not held(directory)
    assert not (directory / "exit.json").exists()


def test_the_recorded_start_times_are_those_of_the_processes(shims: Shims) -> None:
    directory, _ = shims.start("exec sleep 600")
    pids = started(directory)
    stat = Path(f"/proc/{pids['program']['pid']}/stat").read_text()
    assert pids["program"]["start"] == int(stat.rpartition(")")[2].split()[19])


@pytest.mark.scenario(68)
def test_endless_output_stays_within_its_limit_in_memory_and_on_disk(shims: Shims) -> None:
    limit = 1024 * 1024
    code = "import sys\nb=bytes(range(1,256)).replace(b'\\n',b'')*258\nfor i in range(800): sys.stdout.buffer.write(b)\nprint('\\nthe end')"
    directory, shim = shims.start(
        ["/bin/sh", "-c", 'echo first; "$@"; read x; sleep 600', "sh", sys.executable, "-c", code], log_limit=limit
    )
    eventually(lambda: output(directory).endswith(b"the end\n"), within=60)
    assert psutil.Process(shim.pid).memory_info().rss < 40 * 1024 * 1024
    assert len(output(directory)) <= limit
    assert output(directory).startswith(b"first\n")
    offsets = [int(path.stem.partition("-")[2]) for path in sorted(directory.glob("output-*.log"))]
    assert offsets[0] == 0
    assert offsets[1] > limit  # between the first segment and the newest ones is the gap


def test_lines_with_broken_bytes_do_not_break_the_exit_record(shims: Shims) -> None:
    directory, shim = shims.start("head -c 20000 /dev/zero; printf '\\377\\376'; exit 1")
    shim.wait(10)
    assert ended(directory)["code"] == 1
