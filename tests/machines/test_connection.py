"""Who speaks for a machine, and when it counts as away."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import LazySettings
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.timezone import now

from agents.models import AgentStatus
from chatroom.errors import Invalid, NotAllowed, Superseded
from chatroom.models import Event, Pulse, Room
from machines.models import Desired, Machine, MachineStatus, Run, RunState
from machines.services.connection import (
    Introduction,
    SecondInstance,
    change_offer,
    connect_machine,
    finish_replay,
    note_absence,
    note_life,
    note_lives,
    note_silence,
    revive_machine,
)
from machines.untrusted import clean_text
from tests.factories import make_agent, make_machine, make_placement, make_run

from .playing import Daemon, Program, newest_event, triggers

pytestmark = pytest.mark.django_db

SECOND = timedelta(seconds=1)


def introduce(**fields: Any) -> Introduction:
    socket = fields.pop("connection", "socket-2")
    return Introduction.read({"instance": "instance-1", "version": "0.3.0", "platform": "Linux", **fields}, connection=socket)


def living(run: Run, **fields: Any) -> dict[str, Any]:
    return {"run": run.pk, "agent": run.agent_id, "generation": run.generation, "state": "running", "pid": 4711, "stopped": False, **fields}


def again(machine: Machine) -> Machine:
    return Machine.objects.get(pk=machine.pk)


def be_silent(machine: Machine, seconds: float) -> None:
    Machine.objects.filter(pk=machine.pk).update(last_seen_at=now() - seconds * SECOND)


# --- hello


@pytest.mark.scenario(36)
def test_a_first_hello_shows_what_the_machine_offers(alice: Any) -> None:
    machine = make_machine(alice, status=MachineStatus.DISCONNECTED, last_seen_at=None, version="", harnesses=[], allow_dirs=[])
    harness = {"name": "demo", "version": "1.2", "models": ["big"], "ok": False, "error": "program not found: demo"}
    connect_machine(machine.pk, introduce(harnesses=[harness], allow_dirs=["/home/alice/src"], slots=3))
    found = again(machine)
    assert (found.status, found.version, found.slots, found.allow_dirs) == (MachineStatus.CONNECTED, "0.3.0", 3, ["/home/alice/src"])
    assert found.harnesses == [harness]
    event = Event.objects.get(subject="machine")
    assert (event.trigger, event.reason) == ("connect", "laptop-7 is connected")


def test_a_machine_that_was_away_is_back_with_one_event_and_a_line_in_each_room_it_serves(daemon: Daemon) -> None:
    Machine.objects.update(status=MachineStatus.DISCONNECTED, connection="")
    seen = newest_event()
    connect_machine(daemon.machine.pk, introduce())
    events = list(Event.objects.filter(pk__gt=seen).order_by("pk").values_list("subject", "trigger", "room", "reason"))
    assert events == [("machine", "connect", None, "laptop-7 is back"), ("room", "machine_connect", daemon.room.pk, "laptop-7 is back")]


def test_a_reconnect_of_the_same_daemon_displaces_its_own_older_socket_without_an_event(machine: Machine) -> None:
    seen = newest_event()
    connect_machine(machine.pk, introduce())
    assert again(machine).connection == "socket-2"
    assert not note_life(machine.pk, connection="socket-1")
    with pytest.raises(Superseded):
        revive_machine(machine.pk, connection="socket-1")
    assert newest_event() == seen


@pytest.mark.scenario(94)
def test_a_second_instance_is_refused_while_the_first_answers(machine: Machine) -> None:
    be_silent(machine, 1)
    with pytest.raises(
        SecondInstance, match=r"already connected by another daemon \(instance instance, last sign of life 1 s ago\)"
    ) as refusal:
        connect_machine(machine.pk, introduce(instance="instance-2"))
    assert (refusal.value.code, refusal.value.status) == ("second_instance", 409)
    assert again(machine).connection == "socket-1"


@pytest.mark.parametrize("silent", [6, -3600])
@pytest.mark.scenario(94)
def test_a_second_instance_takes_over_once_the_first_is_silent_or_the_clock_was_set_back(machine: Machine, silent: float) -> None:
    be_silent(machine, silent)
    connect_machine(machine.pk, introduce(instance="instance-2"))
    assert (again(machine).instance, again(machine).connection) == ("instance-2", "socket-2")


def test_after_a_goodbye_another_instance_is_welcome_at_once(machine: Machine) -> None:
    note_absence(machine.pk, connection="socket-1", trigger="disconnect", reason="goodbye")
    connect_machine(machine.pk, introduce(instance="instance-2"))
    assert again(machine).status == MachineStatus.CONNECTED


def test_a_revoked_machine_is_not_allowed(machine: Machine) -> None:
    Machine.objects.update(revoked_at=now())
    with pytest.raises(NotAllowed, match="was revoked"):
        connect_machine(machine.pk, introduce())
    assert not note_life(machine.pk, connection="socket-1")
    with pytest.raises(NotAllowed):
        revive_machine(machine.pk, connection="socket-1")


@pytest.mark.parametrize(
    "hello", [{"instance": "short"}, {"instance": None}, {"instance": "a\x1b[31mbcdefgh"}, {"slots": 0}, {"slots": "many"}]
)
def test_an_odd_hello_is_refused_with_what_was_expected(hello: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="expected"):
        introduce(**hello)


def test_what_a_machine_says_of_itself_is_cleaned() -> None:
    hello = introduce(
        platform="Li\0nux\x1b[31m\ud800", harnesses=[{"name": "a\0b", "models": None}, "odd"], allow_dirs=None, runs=["odd", {"run": "x"}]
    )
    assert (hello.platform, hello.offer.allow_dirs, hello.runs) == ("Linux?", [], [])
    assert hello.offer.harnesses == [{"name": "ab", "version": "", "models": [], "ok": True, "error": ""}]


@pytest.mark.parametrize(
    "sequence", ["\x1b[1;31m", "\x1b(B\x1b[m", "\x1b]0;title\x07", "\x1bP1$r\x1b\\", "\x1b7", "\x1b>", "\x1bc", "\x1b#8", "\x1bM"]
)
def test_nothing_of_a_control_sequence_is_left(sequence: str) -> None:
    assert clean_text(f"be{sequence}fore\n") == "before\n"


def test_a_configuration_read_again_is_offered_at_once(machine: Machine) -> None:
    change_offer(machine.pk, {"harnesses": [], "slots": 9, "allow_dirs": ["/srv"]})
    assert (again(machine).harnesses, again(machine).slots, again(machine).allow_dirs) == ([], 9, ["/srv"])


# --- what lived on


@pytest.mark.scenario(37)
def test_a_daemon_that_is_back_finds_its_living_runs_as_they_were(daemon: Daemon) -> None:
    run = daemon.start()
    note_absence(daemon.machine.pk, connection="socket-1", trigger="disconnect", reason="killed")
    connect_machine(daemon.machine.pk, introduce(runs=[living(run)]))
    finish_replay(daemon.machine.pk, living=[run.pk])
    assert (daemon.run.pk, daemon.run.state, daemon.agent.status) == (run.pk, RunState.RUNNING, AgentStatus.READY)


def test_a_run_whose_reports_were_lost_is_walked_to_where_it_is(daemon: Daemon) -> None:
    run = daemon.open()
    connect_machine(daemon.machine.pk, introduce(runs=[living(run)]))
    assert (daemon.run.state, daemon.run.pid) == (RunState.RUNNING, 4711)
    assert triggers(run) == ["create", "validated", "prepare", "launch"]


@pytest.mark.scenario(92)
def test_the_process_of_a_run_that_joined_before_its_daemon_died_is_shown_once_the_next_one_names_it(daemon: Daemon) -> None:
    run = daemon.open()
    Program(run).join()
    for _ in range(2):
        connect_machine(daemon.machine.pk, introduce(runs=[living(run)]))
    assert (daemon.run.state, daemon.run.pid) == (RunState.RUNNING, 4711)
    assert triggers(run).count("tell_pid") == 1


def test_a_hello_costs_the_same_however_many_agents_live_on(machine: Machine, room: Room, django_assert_num_queries: Any) -> None:
    runs = []
    for role in room.team:
        agent = make_agent(room, role, status=AgentStatus.WORKING, lease=60)
        placement = make_placement(machine, agent, desired=Desired.RUNNING, generation=1)
        runs.append(living(make_run(placement, pid=4711)))
    assert len(runs) > 1
    with CaptureQueriesContext(connection) as with_one:
        connect_machine(machine.pk, introduce(runs=runs[:1]))
    with django_assert_num_queries(len(with_one)):
        connect_machine(machine.pk, introduce(runs=runs))


def test_a_run_without_a_process_yet_is_not_called_running(daemon: Daemon) -> None:
    run = daemon.open()
    connect_machine(daemon.machine.pk, introduce(runs=[living(run, state="preparing", pid=None)]))
    assert daemon.run.state == RunState.PREPARING


@pytest.mark.scenario(91)
def test_a_run_that_nobody_names_any_more_is_lost_with_its_machine(daemon: Daemon) -> None:
    run = daemon.start()
    connect_machine(daemon.machine.pk, introduce())
    finish_replay(daemon.machine.pk, living=[])
    lost = Run.objects.get(pk=run.pk)
    assert (lost.state, lost.failure, lost.verdict, lost.error_message) == (RunState.FAILED, "lost", "lost", "lost with its machine")
    assert (daemon.agent.status, daemon.agent.error_message) == (AgentStatus.DEAD, "lost with its machine")


def test_another_machines_runs_are_not_resumed_by_naming_them(daemon: Daemon, bob: Any) -> None:
    run, other = daemon.open(), make_machine(bob, "other", connection="")
    connect_machine(other.pk, introduce(runs=[living(run)]))
    assert daemon.run.state == RunState.VALIDATING


# --- silence


@pytest.mark.scenario(38)
def test_silence_makes_a_machine_unresponsive_then_disconnected_with_one_event_each(machine: Machine, pulse: Pulse) -> None:
    for trigger in ("miss", "miss", "disconnect"):
        assert note_silence(machine.pk, connection="socket-1", trigger=trigger, reason="no sign of life")
    assert triggers(machine) == ["miss", "disconnect"]
    assert again(machine).status == MachineStatus.DISCONNECTED


@pytest.mark.scenario(40)
@pytest.mark.parametrize("trigger", ["miss", "disconnect"])
def test_any_sign_of_life_restores_connected(machine: Machine, pulse: Pulse, trigger: str) -> None:
    note_silence(machine.pk, connection="socket-1", trigger=trigger, reason="no sign of life")
    assert not note_life(machine.pk, connection="socket-1")
    revive_machine(machine.pk, connection="socket-1")
    assert triggers(machine) == [trigger, "connect"]
    assert note_life(machine.pk, connection="socket-1")


def test_a_sign_of_life_of_a_connected_machine_is_one_update_without_event(machine: Machine, django_assert_num_queries: Any) -> None:
    be_silent(machine, 3)
    with django_assert_num_queries(1):
        assert note_life(machine.pk, connection="socket-1")
    seen = again(machine).last_seen_at
    assert seen is not None
    assert now() - seen < SECOND
    assert not Event.objects.filter(subject="machine").exists()


def test_signs_of_life_that_come_together_are_written_together(
    machine: Machine, alice: Any, pulse: Pulse, django_assert_max_num_queries: Any
) -> None:
    other, gone = make_machine(alice, "build-02", connection="socket-7"), make_machine(alice, "build-03", connection="socket-8")
    note_silence(gone.pk, connection="socket-8", trigger="disconnect", reason="no sign of life")
    signs = [(machine.pk, "socket-1"), (other.pk, "socket-1"), (other.pk, "socket-7"), (gone.pk, "socket-8")]
    for one in (machine, other, gone):
        be_silent(one, 3)
    with django_assert_max_num_queries(6):
        assert note_lives(signs) == [True, False, True, False]
    assert [now() - (again(one).last_seen_at or now()) < SECOND for one in (machine, other, gone)] == [True, True, False]


def test_a_displaced_sockets_silence_means_nothing(machine: Machine, pulse: Pulse) -> None:
    connect_machine(machine.pk, introduce())
    with pytest.raises(Superseded):
        note_silence(machine.pk, connection="socket-1", trigger="disconnect", reason="no sign of life")
    assert again(machine).status == MachineStatus.CONNECTED


def test_in_the_quiet_time_no_timer_declares_a_machine_absent_but_a_goodbye_counts(machine: Machine, pulse: Pulse) -> None:
    Pulse.objects.update(quiet_until=now() + 60 * SECOND)
    assert not note_silence(machine.pk, connection="socket-1", trigger="disconnect", reason="no sign of life")
    assert again(machine).status == MachineStatus.CONNECTED
    note_absence(machine.pk, connection="socket-1", trigger="disconnect", reason="goodbye")
    assert again(machine).status == MachineStatus.DISCONNECTED


@pytest.mark.scenario(25)
def test_an_absent_machines_agents_keep_their_status(daemon: Daemon, settings: LazySettings) -> None:
    Program(daemon.start())
    before = daemon.agent.lease_expires_at
    note_absence(daemon.machine.pk, connection="socket-1", trigger="disconnect", reason="power")
    assert (daemon.agent.status, daemon.agent.lease_expires_at) == (AgentStatus.READY, before)
