"""Functions with dependencies, run on threads under supervision.

A ``TaskGraph`` has tasks and runs each as soon as the tasks before it have ended. A run
is an ordinary tree, made by the public API. From inside otpy come words only: the
checks of arguments, what an exception means, the arithmetic of ``Backoff``, the text of
a stack, whether this process is a fork, and how a failed callback is reported.

How a run works. Its tree is a dynamic supervisor ``workers`` and, after it, the
``scheduler``, which starts the workers as they are needed. The scheduler puts each task
that is ready into one queue. A worker takes it from there, runs it, and puts a message
into the inbox of the scheduler. When all tasks are settled the scheduler ends. It is
significant, so the tree ends as well.

When the tree is asked to stop, the scheduler is asked first. It dispatches no further
task, and ends when the running ones are done. Then the workers are stopped. A second
signal stops all of them at once. A worker that is asked to stop reports that on a
helper thread, even if its own thread is stuck, and its task is cancelled.

The files, in the order in which to read them: task.py, results.py, graph.py, then
run.py (the scheduler's thread), worker.py (a worker's thread), exchange.py (what the
two hand to each other), ledger.py (the account of a run); drawing.py shows a graph.
"""

from __future__ import annotations

from otpy.taskgraph.drawing import Description
from otpy.taskgraph.graph import TaskGraph
from otpy.taskgraph.results import Meta, Outcome, Summary, TaskFailure
from otpy.taskgraph.task import Task, marked, task

__all__ = [
    "Description",
    "Meta",
    "Outcome",
    "Summary",
    "Task",
    "TaskFailure",
    "TaskGraph",
    "marked",
    "task",
]
