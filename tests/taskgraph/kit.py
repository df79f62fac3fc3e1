"""What the tests of task graphs share."""

from __future__ import annotations

from otpy.taskgraph import Outcome

PASSED, FAILED, SKIPPED, CANCELLED = Outcome


def nothing():
    """Be a task that passes."""


def fail():
    """Be a task that fails."""
    raise ValueError("ordered to fail")
