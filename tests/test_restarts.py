"""The tables and the window."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import ExitKind, ExitReason, Restart, Shutdown
from otpy.restarts import ACCEPTABLE, VERDICTS, Fate, Final, Verdict, Window, final, is_acceptable

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
