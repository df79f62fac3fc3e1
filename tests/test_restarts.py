"""The tables and the window."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import Backoff, ExitKind, ExitReason, Restart, Shutdown
from otpy.core.restarts import (
    ACCEPTABLE,
    VERDICTS,
    Delays,
    Fate,
    Final,
    Verdict,
    Window,
    final,
    is_acceptable,
)

PLAIN = ExitReason(ExitKind.SHUTDOWN)
WITH_REASON = ExitReason(ExitKind.SHUTDOWN, Shutdown("done"))
NORMAL = ExitReason(ExitKind.NORMAL)
KILLED = ExitReason(ExitKind.KILLED)
CRASH_WHEN_ASKED = ExitReason(ExitKind.SHUTDOWN, OSError("cannot flush"))


def test_the_restart_table_is_complete():
    """Every restart type has a verdict for either class of exit."""
    assert set(VERDICTS) == set(itertools.product(Restart, [True, False]))


def test_only_silent_ends_are_not_reported():
    """A restart is always reported, and so is an abnormal end of a temporary child."""
    assert {key for key, verdict in VERDICTS.items() if not verdict.report} == {
        (Restart.TRANSIENT, True),
        (Restart.TEMPORARY, True),
    }
    assert VERDICTS[Restart.TEMPORARY, False] == Verdict(Fate.FORGET, report=True)


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (PLAIN, Final.SHUTDOWN),
        (ExitReason(ExitKind.LIMIT_REACHED, ValueError()), Final.SHUTDOWN),
        (WITH_REASON, Final.SHUTDOWN_REASON),
        (NORMAL, Final.NORMAL),
        (KILLED, Final.KILLED),
        (CRASH_WHEN_ASKED, Final.OTHER),
        (ExitReason(ExitKind.CRASHED), Final.OTHER),
        (ExitReason(ExitKind.STALLED), Final.OTHER),
    ],
)
def test_ends_in_the_words_of_otp(reason, word):
    """A crash after a stop request is a crash all the same."""
    assert final(reason) is word


def test_acceptable_ends():
    """The matrix of restart type, final reason and shutdown mode."""
    assert set(ACCEPTABLE) == set(itertools.product(Final, [True, False]))
    table = {
        (restart.value, brutal): [
            reason
            for reason in (PLAIN, WITH_REASON, NORMAL, KILLED, CRASH_WHEN_ASKED)
            if is_acceptable(restart, brutal, reason)
        ]
        for restart in Restart
        for brutal in (False, True)
    }

    assert table == {
        ("permanent", False): [PLAIN],
        ("permanent", True): [KILLED],
        ("transient", False): [PLAIN, WITH_REASON, NORMAL],
        ("transient", True): [PLAIN, WITH_REASON, NORMAL, KILLED],
        ("temporary", False): [PLAIN, WITH_REASON, NORMAL],
        ("temporary", True): [PLAIN, WITH_REASON, NORMAL, KILLED],
    }


def test_the_window_allows_intensity_restarts_and_not_one_more():
    """The boundary is inclusive: a restart counts while now - then <= period."""
    window = Window(intensity=2, period=5.0)

    assert [window.spend(0.0), window.spend(1.0), window.spend(5.0)] == [True, True, False]
    assert window.left(5.0) == 0
    assert window.count(5.0 + 1e-9) == 2


def test_intensity_zero_allows_nothing():
    """The first restart is refused."""
    assert not Window(intensity=0, period=1.0).spend(0.0)


@given(st.integers(0, 5), st.floats(0.1, 10), st.lists(st.floats(0, 4), max_size=40))
def test_the_window_agrees_with_counting(intensity, period, gaps):
    """Whatever the times, the answer is that of counting all restarts ever made."""
    window, times, now = Window(intensity, period), [], 0.0
    for gap in gaps:
        now += gap
        times.append(now)
        recent = [then for then in times if now - then <= period]

        assert window.spend(now) == (len(recent) <= intensity)
        assert window.left(now) == max(0, intensity - len(recent))


def waits(patience, *ups):
    """Return the waits of a child that is up so long before each failure."""
    return [(patience.was_up(up), patience.next_wait())[1] for up in ups]


def test_without_a_backoff_nobody_waits():
    """None is not zero: there is no wait that could be cancelled."""
    assert waits(Delays(None, random.Random(0)), 0.0, 100.0) == [None, None]


def test_an_instant_crasher_reaches_the_maximum_and_stays_there():
    """However often it crashes."""
    patience = Delays(Backoff(0.5, 30.0, jitter=0.0), random.Random(0))

    assert waits(patience, *[0.0] * 8) == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert waits(patience, *[0.0] * 2000)[-1] == 30.0


def test_monthly_crashes_never_wait_the_maximum():
    """A calm child starts over, each time."""
    month = 30 * 24 * 3600.0

    assert (
        waits(Delays(Backoff(0.5, 30.0, jitter=0.0), random.Random(0)), *[month] * 100)
        == [0.5] * 100
    )


def test_calm_is_to_be_up_for_reset_after_in_one_piece():
    """Shorter lives do not add up; the boundary counts as calm."""
    patience = Delays(Backoff(1.0, 8.0, jitter=0.0, reset_after=10.0), random.Random(0))

    assert waits(patience, 0.0, 9.9, 9.9, 10.0, 0.0) == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_a_factor_of_one_waits_always_the_same():
    """Constant waits are a back-off, too."""
    assert (
        waits(Delays(Backoff(2.0, 9.0, factor=1.0, jitter=0.0), random.Random(0)), 0, 0, 0)
        == [2.0] * 3
    )


@given(
    st.floats(0.01, 10),
    st.floats(1, 10),
    st.floats(0, 1),
    st.lists(st.floats(0, 20), min_size=1),
    st.integers(0, 99),
)
def test_jitter_stays_in_its_bounds(initial, factor, jitter, ups, seed):
    """It changes a wait by at most that part, never beyond the maximum, and is not carried on."""
    calm, maximum = Delays(Backoff(initial, 50.0, factor, 0.0, 10.0), random.Random(seed)), 50.0
    shaken = Delays(Backoff(initial, maximum, factor, jitter, 10.0), random.Random(seed))

    for without, got in zip(waits(calm, *ups), waits(shaken, *ups), strict=True):
        assert without * (1 - jitter) - 1e-9 <= got <= min(maximum, without * (1 + jitter)) + 1e-9


def test_the_same_seed_waits_the_same():
    """And another one does not."""
    backoff = Backoff(1.0, 60.0)
    once, again, other = (
        waits(Delays(backoff, random.Random(seed)), *[0.0] * 5) for seed in (7, 7, 8)
    )

    assert once == again != other


def test_a_window_without_limit_refuses_no_restart_and_keeps_none():
    """With the intensity "infinity" ten thousand restarts at one moment are allowed, and leave nothing behind."""
    window = Window("infinity", 5.0)

    assert all(window.spend(1.0) for _ in range(10_000))
    assert (window.left(1.0), window.count(1.0)) == (None, 0)
