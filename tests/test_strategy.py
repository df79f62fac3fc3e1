"""Who stops, who starts, in which order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import Strategy
from otpy.core.strategy import MEMBERS, restart_group


@pytest.mark.parametrize(
    ("strategy", "stops", "starts"),
    [
        (Strategy.ONE_FOR_ONE, "", "c"),
        (Strategy.ONE_FOR_ALL, "dba", "abcd"),
        (Strategy.REST_FOR_ONE, "d", "cd"),
    ],
)
def test_the_three_rules(strategy, stops, starts):
    """Children a b c d, and c crashed."""
    assert restart_group(strategy, "abcd", "c") == (tuple(stops), tuple(starts))


def test_every_strategy_has_its_rule():
    """The table is complete."""
    assert set(MEMBERS) == set(Strategy)


@given(st.sampled_from(Strategy), st.lists(st.text(min_size=1), unique=True, min_size=1), st.data())
def test_what_is_true_of_all_of_them(strategy, order, data):
    """The crashed one starts and does not stop; stops mirror starts; nobody outside the children is named."""
    crashed = data.draw(st.sampled_from(order))
    stops, starts = restart_group(strategy, order, crashed)

    assert crashed in starts
    assert stops == tuple(id for id in reversed(starts) if id != crashed)
    assert [id for id in order if id in starts] == list(starts)


@given(st.sampled_from(Strategy), st.lists(st.text(min_size=1), unique=True, min_size=1), st.data())
def test_a_group_contains_the_rest_of_every_group_that_is_being_started(strategy, order, data):
    """The lemma of plan.py: a member that fails in its turn to start has all that come after it in its own group."""
    starts = restart_group(strategy, order, data.draw(st.sampled_from(order)))[1]
    place = data.draw(st.integers(0, len(starts) - 1))
    rest, own = starts[place:], restart_group(strategy, order, starts[place])[1]

    assert set(rest) <= set(own)
