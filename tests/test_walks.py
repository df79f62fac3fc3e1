"""The walks and the look at small supervisors, and the proof that they can fail.

OTPY_SEED=n replays one life; OTPY_WALKS=n sets how many are lived.
"""

import os

import pytest

from tests import exhaustive, planted, walks

FIRST = int(os.environ.get("OTPY_SEED", "0"))
COUNT = 1 if "OTPY_SEED" in os.environ else int(os.environ.get("OTPY_WALKS", "1500"))
PATIENCE = 3000
"""How many lives may pass before a planted bug shows; most show within a hundred."""


@pytest.mark.timeout(0)
def test_lives_keep_the_invariants():
    """Whatever happens in whatever order, no life of a tree breaks an invariant."""
    lived = sum(walks.live(seed).root.done.is_given for seed in range(FIRST, FIRST + COUNT))

    assert lived == COUNT


@pytest.mark.parametrize("case", exhaustive.QUICK, ids=str)
def test_small_supervisors_keep_their_rules(case):
    """Whatever happens to them, up to a depth, in whatever order. ``nox -s look`` goes
    deeper, and looks at all.
    """
    assert exhaustive.look(case, exhaustive.QUICK[case]) > 200


LATE = {
    # bugs that no life before this one meets: their search begins here, and goes on from here
    planted.calls_outlive_a_stall_that_ends_all: 1304,
    planted.who_comes_does_not_count: 307,
    planted.ends_are_judged_at_once: 289,
    planted.starts_that_are_broken_off_wait_for_ever: 210,
    planted.deleting_forgets_the_caller: 174,
    planted.leavers_wait_for_ever: 153,
    planted.only_a_caller_releases: 140,
}


def lives_until_caught(*, is_dense, first=0):
    for seed in range(first, first + PATIENCE):
        try:
            walks.live(seed, is_dense=is_dense)
        except walks.Broken as broken:
            return seed + 1, str(broken).splitlines()[0].partition(": ")[2]
    return None


@pytest.mark.parametrize("plant", planted.BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant, monkeypatch):
    """Each of these bugs breaks an invariant within a few lives."""
    plant(monkeypatch)

    is_dense = True if plant in planted.SMALL else None
    assert lives_until_caught(is_dense=is_dense, first=LATE.get(plant, 0)) is not None


@pytest.mark.parametrize("plant", planted.SMALL, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_seen_in_a_small_supervisor(plant, monkeypatch):
    """Each of these bugs shows in one of the small cases."""
    plant(monkeypatch)
    [case] = [case for case in exhaustive.QUICK if str(case) == planted.SMALL[plant]]

    with pytest.raises(exhaustive.Broken):
        exhaustive.look(case, exhaustive.QUICK[case])
