"""Children of all kinds in one tree. OTPY_SEED=n replays one life; ``nox -s mixed`` lives many."""

import os

import pytest

from tests import mixed

SEEDS = [int(os.environ["OTPY_SEED"])] if "OTPY_SEED" in os.environ else range(16)


@pytest.mark.parametrize("seed", SEEDS)
def test_all_kinds_live_together(seed):
    """Whatever is ordered, what comes of it is what the strategies say; and at the end nothing is left."""
    mixed.live(seed)
