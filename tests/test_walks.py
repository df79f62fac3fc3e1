"""The walks, and the proof that they can fail. OTPY_SEED=n replays one life; OTPY_WALKS=n sets how many are lived."""

import os

import pytest

from tests import planted, walks

FIRST = int(os.environ.get("OTPY_SEED", "0"))
COUNT = 1 if "OTPY_SEED" in os.environ else int(os.environ.get("OTPY_WALKS", "4000"))
PATIENCE = 3000
"""How many lives may pass before a planted bug shows; most show within a hundred."""


@pytest.mark.timeout(0)
def test_lives_keep_the_invariants():
    """Whatever happens in whatever order, no life of a tree breaks an invariant."""
    lived = sum(walks.live(seed).root.done.is_given for seed in range(FIRST, FIRST + COUNT))

    assert lived == COUNT


def lives_until_caught():
    for seed in range(PATIENCE):
        try:
            walks.live(seed)
        except walks.Broken as broken:
            return seed + 1, str(broken).splitlines()[0].partition(": ")[2]
    return None


@pytest.mark.parametrize("plant", planted.BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(plant, monkeypatch):
    """Each of these bugs breaks an invariant within a few lives."""
    plant(monkeypatch)

    assert lives_until_caught() is not None
