"""An exit and the decision that follows it, in one transaction."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import pairwise

import pytest
from django.contrib.auth.models import User
from django.utils.timezone import now

from agents.models import AgentStatus, Claim
from agents.services import complete_task, start_task
from agents.services.work import keep_late_result
from chatroom.errors import OutdatedClaim, RoleNotYours
from chatroom.models import Event, Message, Task, TaskStatus, Token
from chatroom.principals import resolve_token
from chatroom.services.messages import send_message
from machines.models import Desired, Placement, Run, RunState
from machines.panel import count_restarts
from machines.services.connection import finish_replay
from machines.services.desire import restart_agent, stop_agent
from machines.services.telling import snapshot
from tests.factories import join, make_machine, make_placement, make_room

from .playing import Daemon, Program, newest_event, run_principal, told, triggers, working

pytestmark = pytest.mark.django_db


@pytest.fixture
def claim(daemon: Daemon, alice: User) -> Claim:
    send_message(daemon.room.pk, text="do it", author=alice)
    return working(daemon)


def task() -> Task:
    return Task.objects.earliest("pk")


# --- what follows


@pytest.mark.scenario(24)
@pytest.mark.scenario(51)
def test_a_crash_frees_the_task_and_the_agent_is_restarting_with_the_wait_its_daemon_announced(daemon: Daemon, claim: Claim) -> None:
    seen = newest_event()
    daemon.exit(daemon.run)
    assert (task().status, task().assigned_role, task().attempt, task().crashes) == (TaskStatus.PENDING, "builder", 1, 1)
    placement, agent = daemon.placement, daemon.agent
    assert (agent.status, agent.error_message, agent.incarnation) == (AgentStatus.RESTARTING, "ended with exit code 3", "")
    assert (placement.restart_attempt, placement.restart_attempts, placement.generation) == (2, 3, 1)
    assert placement.restart_at is not None
    assert 2 < (placement.restart_at - now()).total_seconds() <= 3
    assert placement.restart_noted_at == placement.restart_at
    events = Event.objects.filter(pk__gt=seen).order_by("pk").values_list("subject", "trigger", "room")
    assert {room for _, _, room in events} == {daemon.room.pk}
    moves = sorted((subject, trigger) for subject, trigger, _ in events)
    assert moves == [("agent", "process_exited"), ("agent", "restart_initiated"), ("run", "fail"), ("task", "recover_orphaned")]


def test_the_next_run_takes_the_task_up_as_its_second_attempt(daemon: Daemon, claim: Claim) -> None:
    daemon.exit(daemon.run)
    assert Program(daemon.start()).join(joined=True).take().attempt == 2
    assert (daemon.placement.restart_at, daemon.placement.restart_attempt) == (None, 0)


@pytest.mark.scenario(52)
def test_an_exhausted_agent_is_unrecoverable_with_reason_and_last_lines_and_people_are_told_once(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    daemon.exit(run, 1, do="exhausted", lines=["Traceback", "ImportError: no module named x"])
    assert daemon.agent.status == AgentStatus.DEAD_FAILED_REVIVE
    assert daemon.agent.error_message == "3 of 3 attempts failed (on laptop-7)"
    assert (daemon.command.state, daemon.command.outcome) == ("failed", daemon.agent.error_message)
    [text] = told(daemon.room)
    assert text.startswith("builder is unrecoverable: 3 of 3 attempts failed (on laptop-7). Restart it once mended.")
    assert text.endswith("    Traceback\n    ImportError: no module named x")


@pytest.mark.scenario(49)
def test_a_failed_validation_is_exhausted_at_once_with_the_reason_where_the_button_was(daemon: Daemon) -> None:
    run = daemon.open()
    daemon.fail(run, "harness demo: program not found: demo")
    assert (daemon.run.state, daemon.run.error_message) == ("failed", "harness demo: program not found: demo")
    assert triggers(run) == ["create", "fail"]
    assert daemon.agent.status == AgentStatus.DEAD_FAILED_REVIVE
    assert daemon.command.outcome == "harness demo: program not found: demo (on laptop-7)"


@pytest.mark.scenario(97)
def test_exhaustion_is_remembered_with_its_generation_whatever_comes(daemon: Daemon, alice: User) -> None:
    daemon.exit(daemon.launch(daemon.open()), 1, do="exhausted")
    for number in range(10):
        finish_replay(daemon.machine.pk, living=[])
        send_message(daemon.room.pk, text=f"do it {number}", author=alice)
    assert daemon.agent.status == AgentStatus.DEAD_FAILED_REVIVE
    assert (daemon.placement.exhausted_generation, daemon.placement.generation) == (1, 1)
    assert snapshot(daemon.machine.pk)[0]["exhausted"] == 1
    assert (len(told(daemon.room)), Run.objects.count()) == (1, 1)


@pytest.mark.scenario(52)
@pytest.mark.scenario(97)
def test_a_persons_restart_of_an_unrecoverable_agent_works_and_forgets_the_past(daemon: Daemon) -> None:
    daemon.exit(daemon.launch(daemon.open()), 1, do="exhausted")
    assert [exit_["verdict"] for exit_ in snapshot(daemon.machine.pk)[0]["history"]] == ["faulty"]
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    assert daemon.agent.status == AgentStatus.RESTARTING
    assert (snapshot(daemon.machine.pk)[0]["history"], daemon.placement.exhausted_generation) == ([], None)
    Program(daemon.launch(daemon.open())).join()
    assert (daemon.agent.status, daemon.agent.error_message) == (AgentStatus.READY, "")
    assert len(told(daemon.room)) == 1


def test_an_agent_that_is_exhausted_again_is_told_again(daemon: Daemon) -> None:
    for _ in range(2):
        restart_agent(daemon.room.pk, role="builder", actor="alice")
        daemon.exit(daemon.launch(daemon.open()), 1, do="exhausted")
    assert len(told(daemon.room)) == 2


def test_no_decision_leaves_it_dead(daemon: Daemon) -> None:
    daemon.exit(daemon.start(), 3, do="none")
    assert (daemon.agent.status, daemon.placement.restart_at) == (AgentStatus.DEAD, None)


def test_an_exit_before_the_join_keeps_it_restarting(daemon: Daemon) -> None:
    daemon.exit(daemon.launch(daemon.open()), 3)
    assert (daemon.agent.status, daemon.command.state, daemon.placement.restart_attempt) == (AgentStatus.RESTARTING, "pending", 2)


def test_a_run_that_did_not_join_in_time_is_faulty_although_it_was_ended(daemon: Daemon) -> None:
    run = daemon.launch(daemon.open())
    daemon.report("run.aborting", run, asked="deadline", reason="did not join within 60 s")
    daemon.exit(run, None, asked="deadline", failure="no_join", message="did not join within 60 s")
    assert (daemon.run.state, daemon.run.verdict, daemon.run.failure) == ("failed", "faulty", "no_join")


def test_every_state_change_has_exactly_one_event(daemon: Daemon, claim: Claim) -> None:
    daemon.exit(daemon.run)
    ends = {("run", daemon.run.pk): daemon.run.state, ("agent", daemon.agent.pk): daemon.agent.status}
    ends |= {("command", daemon.command.pk): daemon.command.state}
    for (kind, pk), state in ends.items():
        steps = list(Event.objects.filter(subject=kind, subject_id=pk).exclude(to_state="").order_by("pk"))
        assert steps[-1].to_state == state
        assert all(earlier.to_state == later.from_state for earlier, later in pairwise(steps)), steps


# --- crashes


@pytest.mark.scenario(27)
def test_a_task_that_crashes_its_agent_too_often_fails_and_the_next_one_goes_on(daemon: Daemon, claim: Claim, alice: User) -> None:
    send_message(daemon.room.pk, text="something else", author=alice)
    daemon.exit(daemon.run)
    for _ in range(2):
        Program(daemon.start()).join(joined=True).take()
        daemon.exit(daemon.run)
    assert (task().status, task().crashes) == (TaskStatus.FAILED, 3)
    assert task().failure_reason == "it crashed its agent 3 times, the last time: builder on laptop-7 ended with exit code 3"
    assert daemon.agent.status == AgentStatus.RESTARTING
    following = Program(daemon.start()).join(joined=True).take()
    assert (following.task.text, following.attempt) == ("something else", 1)


@pytest.mark.parametrize(
    ("code", "how"),
    [
        (75, {"verdict": "transient", "failure": "transient"}),
        (None, {"verdict": "lost", "failure": "lost", "do": "none"}),
        (0, {"asked": "restart"}),
        (0, {"asked": "daemon_stop", "do": "none"}),
    ],
)
@pytest.mark.scenario(27)
def test_only_faulty_exits_count_against_a_task(daemon: Daemon, claim: Claim, code: int | None, how: dict[str, str]) -> None:
    daemon.exit(daemon.run, code, **how)
    assert (task().status, task().crashes) == (TaskStatus.PENDING, 0)


@pytest.mark.scenario(27)
def test_an_undelivered_offer_does_not_count(daemon: Daemon, alice: User) -> None:
    program = Program(daemon.start()).join(joined=True)
    send_message(daemon.room.pk, text="do it", author=alice)
    program.take(start=False, received=False)
    daemon.exit(daemon.run)
    assert (task().status, task().crashes) == (TaskStatus.PENDING, 0)


def test_a_crash_without_a_task_costs_no_task_anything(daemon: Daemon, alice: User) -> None:
    daemon.exit(daemon.start())
    send_message(daemon.room.pk, text="do it", author=alice)
    assert task().crashes == 0


def test_in_a_fail_fast_room_a_poison_task_aborts_the_runs_of_the_others(alice: User) -> None:
    room = make_room(alice, name="Strict", fail_fast=True)
    machine = make_machine(alice)
    daemons = {role: Daemon(machine, room, role) for role in ("builder", "reviewer")}
    for role, daemon in daemons.items():
        make_placement(machine, daemon.agent)
        send_message(room.pk, text="do it", to=role, author=alice)
        working(daemon)
    daemons["builder"].exit(daemons["builder"].run, None, asked="abort")
    assert dict(Task.objects.values_list("assigned_role", "status")) == {"builder": "failed", "reviewer": "failed"}
    command = daemons["reviewer"].command
    assert (command.act, command.run_id, command.state) == ("abort_run", daemons["reviewer"].run.pk, "pending")


# --- ends of a run that a person has given up already


@pytest.mark.parametrize(
    ("act", "how"),
    [(restart_agent, ("asked", "restart", RunState.COMPLETED)), (stop_agent, ("asked", "stop", RunState.COMPLETED))],
    ids=["restart", "stop"],
)
@pytest.mark.parametrize("code", [1, 75])
def test_a_program_that_ends_itself_before_its_daemon_asks_has_ended_as_a_person_asked(
    daemon: Daemon, claim: Claim, act: Callable[..., object], how: tuple[str, str, str], code: int
) -> None:
    run = daemon.run
    act(daemon.room.pk, role="builder", actor="alice")
    for _ in range(2):  # the second is a repeat
        assert daemon.exit(run, code, verdict="transient" if code == 75 else "faulty") is None
    assert (daemon.run.verdict, daemon.run.asked, daemon.run.state) == how
    assert daemon.agent.status == (AgentStatus.OFFLINE if act is stop_agent else AgentStatus.RESTARTING)
    assert (task().status, task().crashes) == (TaskStatus.PENDING, 0)
    assert [exit_["verdict"] for exit_ in snapshot(daemon.machine.pk)[0]["history"]] == ["asked"]
    assert count_restarts([daemon.agent.pk]) == {}


@pytest.mark.parametrize("act", [restart_agent, stop_agent], ids=["restart", "stop"])
def test_a_crash_before_a_person_asked_stays_one_although_it_is_heard_of_later(
    daemon: Daemon, claim: Claim, act: Callable[..., object]
) -> None:
    run = daemon.run
    act(daemon.room.pk, role="builder", actor="alice")
    assert daemon.exit(run, 3, age=60) is None
    assert (daemon.run.verdict, daemon.run.state) == ("faulty", RunState.FAILED)


def test_an_outdated_run_that_could_not_be_started_says_why_and_counts_nothing(daemon: Daemon) -> None:
    run = daemon.open()
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    daemon.fail(run, "harness demo: program not found: demo")
    assert (daemon.run.state, daemon.run.verdict) == (RunState.FAILED, "asked")
    assert daemon.run.error_message == "harness demo: program not found: demo"
    assert count_restarts([daemon.agent.pk]) == {}


def test_a_machine_that_went_down_with_an_outdated_run_has_lost_it(daemon: Daemon) -> None:
    run = daemon.start()
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    daemon.exit(run, None, verdict="lost", failure="lost", do="none")
    assert (daemon.run.state, daemon.run.verdict, daemon.run.asked) == (RunState.FAILED, "lost", "")


def test_a_crash_of_the_newest_generation_is_a_crash(daemon: Daemon) -> None:
    daemon.start()
    restart_agent(daemon.room.pk, role="builder", actor="alice")
    daemon.exit(daemon.run, 0, asked="restart")
    daemon.exit(daemon.start(), 1)
    assert (daemon.run.generation, daemon.run.verdict, daemon.run.state) == (2, "faulty", RunState.FAILED)
    assert count_restarts([daemon.agent.pk]) == {daemon.agent.pk: 1}


# --- history


def test_the_history_is_of_the_last_day_oldest_first(daemon: Daemon) -> None:
    for code in (1, 2):
        daemon.exit(daemon.start(), code)
    old, new = Run.objects.order_by("pk")
    [first, second] = snapshot(daemon.machine.pk)[0]["history"]
    assert (first["run"], second["run"], first["generation"], first["joined"], first["verdict"]) == (old.pk, new.pk, 1, True, "faulty")
    assert first["age"] >= second["age"] >= 0
    Run.objects.filter(pk=old.pk).update(ended_at=now() - timedelta(hours=25))
    assert [exit_["run"] for exit_ in snapshot(daemon.machine.pk)[0]["history"]] == [new.pk]
    json.dumps(snapshot(daemon.machine.pk))


def test_an_exit_that_waited_for_the_server_is_as_old_as_it_is(daemon: Daemon) -> None:
    run = daemon.start()
    Run.objects.update(created_at=now() - timedelta(hours=2))
    Placement.objects.update(history_since=now() - timedelta(hours=3))
    daemon.exit(run, age=3600)
    assert 3599 < snapshot(daemon.machine.pk)[0]["history"][0]["age"] < 3700


def test_a_snapshot_costs_the_same_however_many_agents(
    alice: User, django_assert_num_queries: Callable[[int], AbstractContextManager[object]]
) -> None:
    machine = make_machine(alice)
    for number in range(3):
        room = make_room(alice, name=f"Room {number}", team="squad")
        for role in room.team:
            daemon = Daemon(machine, room, role)
            make_placement(machine, daemon.agent)
            daemon.exit(daemon.start())
    with django_assert_num_queries(3):
        agents = snapshot(machine.pk)
    assert len(agents) == 9
    assert all(len(agent["history"]) == 1 for agent in agents)


# --- the token of a run


@pytest.mark.scenario(78)
def test_an_ended_runs_token_may_only_deliver_late_results_for_a_day(daemon: Daemon, alice: User) -> None:
    send_message(daemon.room.pk, text="do it", author=alice)
    working(daemon)
    run, claim = daemon.run, Claim.objects.get()
    secret = Token.objects.issue(kind="agent", name="run", room=daemon.room, role="builder", subject_id=run.pk)[1]
    resolve_token(secret).find_room(daemon.room.slug)
    daemon.exit(run)

    late = resolve_token(secret)
    with pytest.raises(RoleNotYours, match="has ended: its token may only deliver late results"):
        late.find_room(daemon.room.slug)
    with pytest.raises(RoleNotYours):
        Program(run).join(joined=True)
    with pytest.raises(OutdatedClaim):
        complete_task(daemon.room.pk, claim.key, text="done after all", principal=late)
    keep_late_result(daemon.room.pk, claim.key, text="done after all")
    assert Message.objects.get(kind="late_result").text == "done after all"

    newer = Program(daemon.start()).join(joined=True).take(start=False)
    with pytest.raises(RoleNotYours, match="is of another start of builder"):
        start_task(daemon.room.pk, newer.key, principal=late)
    expires_at = Token.objects.get(pk=late.token_id).expires_at
    assert expires_at is not None
    assert timedelta(hours=23) < expires_at - now() <= timedelta(hours=24)


@pytest.mark.scenario(28)
def test_the_holder_of_an_outdated_claim_is_told_who_has_its_task_and_on_which_machine(daemon: Daemon, claim: Claim) -> None:
    daemon.exit(daemon.run)
    program = Program(daemon.start())
    program.join(joined=True).take()
    with pytest.raises(OutdatedClaim, match=r"attempt 1 is yours, attempt 2 is with builder on laptop-7$"):
        complete_task(daemon.room.pk, claim.key, text="done", principal=run_principal(program.run))


@pytest.mark.scenario(96)
def test_a_person_in_a_terminal_is_refused_a_remote_role_with_what_to_do(daemon: Daemon, alice: User) -> None:
    with pytest.raises(
        RoleNotYours, match=r"to play it in a terminal, make it custom first \(configure_agent demo --role builder --kind custom\)"
    ):
        join(daemon.room, alice)
    assert daemon.agent.status == AgentStatus.OFFLINE


def test_only_the_current_run_joins(daemon: Daemon) -> None:
    old = daemon.start()
    daemon.exit(old)
    new = daemon.launch(daemon.open())
    with pytest.raises(RoleNotYours, match=f"run {old.pk} is not the current one of builder"):
        Program(old).join()
    Program(new).join()
    assert (daemon.agent.status, daemon.placement.desired_state) == (AgentStatus.READY, Desired.RUNNING)
