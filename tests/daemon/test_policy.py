from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machines.daemon.policy import (
    Desired,
    Ending,
    Exhausted,
    Exit,
    Keep,
    Limits,
    Living,
    Nothing,
    Rest,
    Restart,
    Start,
    Stop,
    Verdict,
    Wait,
    Wanted,
    breaker_is_open,
    decide,
    earliest_start,
    failed_attempts,
    judge,
    next_act,
    who_asked,
)

LIMITS = Limits()
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def crash(at: float = 0.0, *, joined: bool = False, verdict: Verdict = "faulty", retry_after: float | None = None) -> Exit:
    return Exit(run=int(at) + 1, at=at, joined=joined, verdict=verdict, retry_after=retry_after)


def after(*history: Exit, random: float = 0.5, wanted: bool = True, limits: Limits = LIMITS) -> Restart | Exhausted | Nothing:
    return decide(history, wanted=wanted, limits=limits, now=history[-1].at, random=random)


histories = st.lists(
    st.builds(Exit, run=st.integers(1, 9), at=st.floats(0, 90000), joined=st.booleans(), verdict=st.sampled_from(VERDICTS)),
    min_size=1,
    max_size=30,
).map(lambda exits: sorted(exits, key=lambda one: one.at))
randoms = st.floats(0, 1, exclude_max=True)


def test_the_delay_doubles_with_each_failed_attempt_until_they_are_used_up() -> None:
    assert after(crash(0)) == Restart(3.0, 2, 3)
    assert after(crash(0), crash(10)) == Restart(6.0, 3, 3)
    assert after(crash(0), crash(10), crash(20)) == Exhausted("3 of 3 attempts failed")


def test_the_reason_carries_the_last_words() -> None:
    found = decide([crash(1), crash(2), crash(3)], wanted=True, limits=LIMITS, now=3, random=0, last_words="ended with exit code 3")
    assert found == Exhausted("3 of 3 attempts failed; the last: ended with exit code 3")


def test_an_agent_that_had_joined_begins_anew() -> None:
    assert after(crash(0), crash(10), crash(20, joined=True)) == Restart(3.0, 1, 3)
    assert after(crash(0), crash(10, joined=True), crash(20)) == Restart(3.0, 2, 3)


@pytest.mark.scenario(57)
def test_the_fast_window_stops_a_crash_loop_of_an_agent_that_joins_each_time() -> None:
    assert after(*(crash(n * 60.0, joined=True) for n in range(4))) == Restart(3.0, 1, 3)
    assert after(*(crash(n * 60.0, joined=True) for n in range(5))) == Exhausted("5 faulty exits in 10 min")


@pytest.mark.scenario(57)
def test_the_slow_window_stops_a_slow_loop() -> None:
    assert isinstance(after(*(crash(n * 180.0, joined=True) for n in range(19))), Restart)
    assert after(*(crash(n * 180.0, joined=True) for n in range(20))) == Exhausted("20 faulty exits in 24 h")


def test_old_exits_slide_out_of_the_windows() -> None:
    assert isinstance(after(*(crash(n * 3600.0 * 2, joined=True) for n in range(100))), Restart)


@pytest.mark.scenario(59)
def test_a_transient_failure_waits_as_told_and_uses_up_nothing() -> None:
    patient = [crash(n * 60.0, verdict="transient", retry_after=40.0) for n in range(30)]
    found = after(*patient, random=0.0)
    assert found == Restart(40.0, 1, 3)
    assert after(crash(0), crash(1), crash(2, verdict="transient")) == Restart(3.0, 3, 3)


def test_transient_failures_back_off_by_themselves() -> None:
    delays = [after(*(crash(float(n), verdict="transient") for n in range(count))) for count in range(1, 9)]
    assert [found.after for found in delays if isinstance(found, Restart)] == [3, 6, 12, 24, 48, 60, 60, 60]


def test_a_permanent_failure_is_given_up_at_once_and_a_newer_generation_has_no_past() -> None:
    history, now = [crash(0), crash(1), crash(2)], 2.0
    permanent = decide(history[:1], wanted=True, is_permanent=True, limits=LIMITS, now=now, random=0, last_words="no such program")
    assert permanent == Exhausted("no such program")
    assert decide(history, wanted=True, is_renewed=True, limits=LIMITS, now=now, random=0) == Restart(0.0, 1, 3)
    assert decide(history, wanted=False, is_permanent=True, is_renewed=True, limits=LIMITS, now=now, random=0) == Nothing()


def test_an_exit_somebody_asked_for_is_followed_at_once_or_by_nothing() -> None:
    assert after(crash(0, verdict="asked")) == Restart(0.0, 1, 3)
    assert after(crash(0, verdict="asked"), wanted=False) == Nothing()
    assert after(crash(0), crash(1), crash(2), wanted=False) == Nothing()


@pytest.mark.parametrize(
    ("ending", "verdict"),
    [
        (Ending(code=0), "faulty"),
        (Ending(code=3), "faulty"),
        (Ending(signal=9), "faulty"),
        (Ending(launch_error="no such file"), "faulty"),
        (Ending(code=75), "transient"),
        (Ending(code=1, failure="rate_limited"), "transient"),
        (Ending(code=1, failure="something else"), "faulty"),
        (Ending(code=75, asked="stop"), "asked"),
        (Ending(signal=15, asked="abort"), "asked"),
        (Ending(signal=15, asked="deadline"), "faulty"),
        (Ending(machine_lost=True), "lost"),
    ],
)
def test_the_verdict_on_an_ending(ending: Ending, verdict: Verdict) -> None:
    assert judge(ending) == verdict


@pytest.mark.parametrize(
    ("asked", "wanted", "who"),
    [
        (None, Wanted(3, "running"), None),
        (None, Wanted(2, "running"), None),
        (None, None, None),
        (None, Wanted(4, "running"), "restart"),
        (None, Wanted(4, "stopped"), "stop"),
        ("deadline", Wanted(3, "running"), "deadline"),
        ("deadline", Wanted(4, "running"), "restart"),
        ("abort", Wanted(4, "running"), "abort"),
    ],
)
def test_the_end_of_an_outdated_generation_was_asked_for(asked: str | None, wanted: Wanted | None, who: str | None) -> None:
    assert who_asked(asked, wanted=wanted, living=Living(41, 3)) == who


@given(histories, randoms)
def test_what_uses_up_nothing_never_exhausts(history: list[Exit], random: float) -> None:
    harmless = [one for one in history if one.verdict != "faulty"] or [crash(0, verdict="lost")]
    assert isinstance(after(*harmless, random=random), Restart)


@given(histories, randoms)
def test_a_restart_is_never_sooner_or_later_than_its_limits_allow(history: list[Exit], random: float) -> None:
    found = after(*history, random=random)
    if isinstance(found, Restart):
        least = 0.0 if history[-1].verdict == "asked" else LIMITS.delay * (1 - LIMITS.jitter)
        assert least <= found.after <= LIMITS.delay_max * (1 + LIMITS.jitter)
        assert 1 <= found.attempt <= LIMITS.attempts or history[-1].verdict != "faulty"


@given(histories, st.integers(1, 10), randoms)
def test_a_run_of_failures_always_ends(history: list[Exit], attempts: int, random: float) -> None:
    limits = Limits(attempts=attempts)
    for n in range(attempts):
        history = [*history, crash(100000.0 + n)]
    assert isinstance(after(*history, limits=limits, random=random), Exhausted)


@given(histories)
def test_earlier_exits_before_the_last_join_count_no_attempt(history: list[Exit]) -> None:
    joined = crash(100000.0, joined=True)
    assert failed_attempts([*history, joined]) == 0
    assert failed_attempts([*history, joined, crash(100001.0)]) == 1


@given(histories, randoms)
def test_a_returning_daemon_waits_the_rest_of_the_delay(history: list[Exit], random: float) -> None:
    now = history[-1].at + 1.0
    found = earliest_start(history, limits=LIMITS, now=now, random=random)
    if history[-1].verdict == "asked":
        assert found == now
    else:
        assert history[-1].at + 2 <= found <= history[-1].at + 75
    assert earliest_start([], limits=LIMITS, now=now, random=random) == now


wanteds = st.none() | st.builds(
    Wanted,
    generation=st.integers(1, 3),
    desired=st.sampled_from(get_args(Desired)),
    exhausted=st.none() | st.integers(1, 3),
    mode=st.sampled_from(["loop", "task"]),
)
livings = st.none() | st.builds(Living, run=st.integers(1, 9), generation=st.integers(1, 3))


@given(wanteds, livings, st.floats(0, 100), st.floats(0, 100))
def test_one_step_is_right_whatever_is_wanted_and_whatever_lives(
    wanted: Wanted | None, living: Living | None, earliest: float, now: float
) -> None:
    act = next_act(wanted, living, earliest=earliest, now=now)
    match act:
        case Start(generation):
            assert living is None
            assert wanted is not None
            assert wanted.desired == "running"
            assert wanted.exhausted != generation == wanted.generation
            assert earliest <= now
        case Wait(until):
            assert living is None
            assert until > now
        case Keep(run):
            assert wanted is not None
            assert living == Living(run, wanted.generation)
            assert wanted.desired == "running"
        case Stop(run, asked):
            assert living is not None
            assert living.run == run
            assert asked
        case Rest():
            assert living is None
            assert wanted is None or not wanted.runs


@given(livings, st.floats(0, 100))
def test_before_a_server_has_spoken_nothing_is_started_or_ended(living: Living | None, now: float) -> None:
    assert next_act(None, living, earliest=0, now=now, known=False) == (Keep(living.run) if living else Rest())


@given(wanteds, livings)
def test_converging_ends_after_at_most_two_steps(wanted: Wanted | None, living: Living | None) -> None:
    """Stop, start: then one run of the current generation where it is wanted, none where it is not."""
    for _ in range(2):
        match next_act(wanted, living, earliest=0, now=0):
            case Start(generation):
                living = Living(99, generation)
            case Stop():
                living = None
    if wanted is None or wanted.desired != "running" or wanted.mode != "loop":
        assert living is None
    elif wanted.runs:
        assert living is not None
        assert living.generation == wanted.generation


@pytest.mark.scenario(58)
@pytest.mark.parametrize(
    ("dead", "agents", "is_open"), [(6, 8, True), (4, 8, False), (5, 8, True), (3, 3, False), (3, 4, True), (2, 4, False)]
)
def test_the_breaker_opens_when_more_than_half_of_four_or_more_die_together(dead: int, agents: int, is_open: bool) -> None:
    deaths = [(agent, float(agent)) for agent in range(dead)]
    assert breaker_is_open(deaths, agents=agents, limits=LIMITS, now=10.0) is is_open
    assert breaker_is_open(deaths, agents=agents, limits=LIMITS, now=100.0) is False


def test_one_agent_that_dies_often_does_not_open_the_breaker() -> None:
    assert not breaker_is_open([(1, float(n)) for n in range(20)], agents=8, limits=LIMITS, now=20.0)


def test_the_servers_settings_replace_the_defaults() -> None:
    found = LIMITS.changed({"restart_attempts": 5, "restart_delay": 0.1, "heartbeat_interval": 30})
    assert (found.attempts, found.delay, found.deadline) == (5, 0.1, LIMITS.deadline)
