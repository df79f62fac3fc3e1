"""What the tests of task graphs share."""

from __future__ import annotations

from otpy.taskgraph import Outcome

PASSED, FAILED, SKIPPED, CANCELLED = Outcome


def nothing():
    pass


def fail():
    raise ValueError("ordered to fail")
