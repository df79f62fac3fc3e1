"""The account of one run: the open attempts, and what became of the tasks.

The thread of the scheduler owns it. A callback may hang on that thread for good. Then
the caller of ``run`` closes the ledger and sums it up on its own thread.
"""

from __future__ import annotations

import time
import types

import attrs

from otpy.taskgraph.blueprint import Blueprint
from otpy.taskgraph.exchange import Attempt
from otpy.taskgraph.results import CANCELLED, Outcome, Summary, TaskFailure
from otpy.values import running


@running
class Ledger:
    """The account of one run.

    Attributes:
        blueprint: The graph.
        outcomes: The outcomes of the settled tasks, by place.
        failures: Why tasks have failed, by name.
        open: The attempts that are dispatched and not accounted for.
        is_closed: Whether the caller of ``run`` has given the scheduler up.
        started_at, began: When the run began: seconds since the epoch, and monotonic.
    """

    blueprint: Blueprint
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    failures: dict[str, TaskFailure] = attrs.field(factory=dict)
    open: set[Attempt] = attrs.field(factory=set)
    is_closed: bool = False
    started_at: float = attrs.field(factory=time.time)
    began: float = attrs.field(factory=time.monotonic)

    def close(self) -> None:
        """Count nothing that ends from now on."""
        self.is_closed = True
        for attempt in list(self.open):
            attempt.token.acquire(blocking=False)

    def sum_up(self) -> Summary:
        """Return the summary. A task that is not settled counts as cancelled."""
        outcomes = {
            task.name: self.outcomes.get(place, CANCELLED)
            for place, task in enumerate(self.blueprint.tasks)
        }
        failures = {name: self.failures[name] for name in outcomes if name in self.failures}
        return Summary(
            outcomes=types.MappingProxyType(outcomes),
            failures=types.MappingProxyType(failures),
            started_at=self.started_at,
            finished_at=time.time(),
            duration=time.monotonic() - self.began,
        )
