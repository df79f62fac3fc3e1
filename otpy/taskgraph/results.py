"""The values by which a run reports its beginning and its end."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import attrs

from otpy.exceptions import show
from otpy.reports import ExitKind
from otpy.values import Value, report


class Outcome(Enum):
    """What became of a task."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


PASSED, FAILED, SKIPPED, CANCELLED = Outcome


@report
class TaskFailure(Value):
    """Why the last attempt of a task failed.

    Attributes:
        name: The name of the task.
        kind: CRASHED: the task raised; STALLED: it took longer than its timeout;
            KILLED: the thread of its worker died of something else.
        exception: The exception that it raised; a ``TimeoutError`` if it stalled.
        traceback: The exception as text, always printable; of a task that stalled, the
            stack of its thread at that moment.
        attempts: How often it was tried.
    """

    name: str
    kind: ExitKind
    exception: BaseException = attrs.field(eq=id, repr=show)
    traceback: str
    attempts: int


@report
class Meta(Value):
    """What a run is about to do; for ``on_start``.

    Attributes:
        tasks: The names of the tasks, in the order of declaration.
        workers: How many threads run them at most.
        started_at: Seconds since the epoch.
    """

    tasks: tuple[str, ...]
    workers: int
    started_at: float


@report
class Summary(Value):
    """What came of a run.

    Attributes:
        outcomes: The outcome of each task, by name, in the order of declaration.
        failures: Why tasks have failed, by name.
        started_at, finished_at: Seconds since the epoch.
        duration: Seconds, measured with a clock that does not step.
    """

    outcomes: Mapping[str, Outcome]
    failures: Mapping[str, TaskFailure]
    started_at: float
    finished_at: float
    duration: float

    @property
    def passed(self) -> int:
        """How many tasks returned."""
        return self._count(PASSED)

    @property
    def failed(self) -> int:
        """How many tasks failed in each of their attempts."""
        return self._count(FAILED)

    @property
    def skipped(self) -> int:
        """How many tasks were not run because a task before them did not pass."""
        return self._count(SKIPPED)

    @property
    def cancelled(self) -> int:
        """How many tasks were not run, or not to their end, because of an interrupt."""
        return self._count(CANCELLED)

    @property
    def ok(self) -> bool:
        """Whether all tasks passed."""
        return self.passed == len(self.outcomes)

    @property
    def text(self) -> str:
        """The summary in one line."""
        counts = [f"{self.passed} passed", f"{self.failed} failed", f"{self.skipped} skipped"]
        if self.cancelled:
            counts.append(f"{self.cancelled} cancelled")
        return f"{', '.join(counts)} in {self.duration:.1f}s"

    def _count(self, outcome: Outcome) -> int:
        return sum(one is outcome for one in self.outcomes.values())

    def __str__(self) -> str:
        return self.text
