"""The simulation without pytest: a database of its own, several processes, a line for each seed."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

Job = TypeVar("Job")
Answer = TypeVar("Answer")
NAMES: list[str] = []  # of the database that this one stands in for
SHARED_MEMORY = Path("/dev/shm")


def prepare() -> None:
    """In each process, before anything of the program is imported."""
    place = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    os.environ["CHATROOM_HOME"] = tempfile.mkdtemp(prefix="chatroom-simulation-", dir=place)
    os.environ["DJANGO_SETTINGS_MODULE"] = "chatroom.settings"
    import django

    django.setup()
    name_database()


def name_database() -> None:
    from django.db import connection

    home = os.environ["CHATROOM_HOME"]
    is_file = connection.vendor == "sqlite"
    connection.settings_dict["TEST"]["NAME"] = f"{home}/simulation.sqlite3" if is_file else f"chatroom_simulation_{os.getpid()}"
    NAMES.append(connection.settings_dict["NAME"])
    connection.creation.create_test_db(verbosity=0, autoclobber=True)


def clean_up() -> None:
    from django.db import connection

    connection.creation.destroy_test_db(NAMES.pop(), verbosity=0)
    shutil.rmtree(os.environ["CHATROOM_HOME"], ignore_errors=True)


@contextmanager
def database() -> Iterator[None]:
    prepare()
    try:
        yield
    finally:
        clean_up()


def work(call: Callable[[Any], Any], jobs: Any, answers: Any) -> None:
    with database():
        parent = parent_process()
        for number, job in iter(jobs.get, None):
            if parent is None or not parent.is_alive():
                break  # it was killed: nobody waits for the answers
            answers.put((number, call(job)))


def in_processes(call: Callable[[Job], Answer], jobs: Iterable[Job], *, processes: int) -> Iterator[Answer]:
    """The answers, in the order of the jobs."""
    context = get_context("spawn")
    waiting, answers = context.Queue(), context.Queue()
    count = 0
    for count, job in enumerate(jobs, start=1):
        waiting.put((count, job))
    workers = [context.Process(target=work, args=(call, waiting, answers), daemon=True) for _ in range(min(processes, max(1, count)))]
    for worker in workers:
        waiting.put(None)
        worker.start()
    yield from in_order(answers, workers, count)
    for worker in workers:
        worker.join()


def in_order(answers: Any, workers: list[Any], count: int) -> Iterator[Any]:
    early: dict[int, Any] = {}
    for number in range(1, count + 1):
        while number not in early:
            if not any(worker.is_alive() for worker in workers) and answers.empty():
                sys.exit("chatroom: the processes of the simulation have ended too early")
            try:
                found, answer = answers.get(timeout=1)
                early[found] = answer
            except OSError:
                continue
            except Exception as error:
                if type(error).__name__ != "Empty":
                    raise
        yield early.pop(number)
