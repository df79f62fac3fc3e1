"""The frozen copy of a graph, of which a run is made."""

from __future__ import annotations

import graphlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

from otpy.exceptions import SpecError
from otpy.taskgraph.task import Task, path_of
from otpy.values import running


@running(frozen=True, kw_only=True)
class Blueprint:
    """A graph as it was when the run was asked for. The graph may change meanwhile.

    The place of a task in *tasks* stands for the task.

    Attributes:
        tasks: The tasks, in the order of declaration.
        after: For each task the places of the tasks that must have ended before.
        workers: How many tasks may run at once.
        skips: Whether tasks are skipped after one that did not pass.
        callbacks: The callbacks for each event.
        state: The dict that the tasks share.
        lock, results: The lock and the dict that the state had when the run was made. A
            task may put others into the state.
        stores: Whether results are kept.
        clears: Whether the run begins without results.
    """

    tasks: tuple[Task, ...]
    after: tuple[tuple[int, ...], ...]
    workers: int
    skips: bool
    callbacks: Mapping[str, tuple[Callable[..., object], ...]]
    state: dict[str, Any]
    lock: threading.RLock
    results: dict[str, Any]
    stores: bool
    clears: bool

    def sorter(self) -> graphlib.TopologicalSorter[int]:
        """Return a new sorter of the places, ready to be asked.

        Raises:
            SpecError: There is a cycle.
        """
        sorter = graphlib.TopologicalSorter(dict(enumerate(self.after)))
        try:
            sorter.prepare()
        except graphlib.CycleError as error:
            names = [self.tasks[place].name for place in error.args[1]]
            raise SpecError(path_of(names[-1]), "after", " -> ".join(names), "no cycle") from None
        return sorter
