"""What the scheduler of a run and its workers hand to each other.

Laws:
1. An attempt is accounted for once. The thread that takes its token decides what became
   of it: the worker that has finished it, or the scheduler whose timeout is over. What
   the other one reports changes nothing.
2. The attempt that a worker has taken is in its seat, whatever happens to its thread.
   So the task of a dead worker is known.

Each field of a ``Seat`` has one thread that writes it; the class says which.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

import attrs

from otpy import Context, Fenced, Killed
from otpy.exceptions import meaning_of
from otpy.runtime import threads
from otpy.taskgraph.blueprint import Blueprint
from otpy.taskgraph.task import Task
from otpy.values import Value, message, running


@running
class Attempt:
    """One try of a task.

    Attributes:
        task, place: The task, and its place in the blueprint.
        number: The first attempt is 1.
        call: The function, with the state if it wants that.
        token: A lock that is taken once, and never given back.
    """

    task: Task
    place: int
    number: int
    call: Callable[[], object]
    token: threading.Lock = attrs.field(factory=threading.Lock)


@running
class Seat:
    """What is known of one life of a worker, also when its thread is dead.

    Attributes:
        ctx, number: The worker. Its number is that in its name.
        held: The attempt that it has taken last. Written by the worker's thread.
        error: The exception that the thread died of. Written by the worker's thread.
        text: The traceback of *error*. Written by the worker's thread.
        cancel: Cancels the coroutine that the worker runs. Written by the worker's
            thread; called by a helper thread.
        is_dismissed: Whether it has lost a token. Written by the scheduler's thread.
    """

    ctx: Context
    number: int
    held: list[Attempt] = attrs.field(factory=list)
    error: BaseException | None = None
    text: str = ""
    cancel: Callable[[], object] | None = None
    is_dismissed: bool = False


class News(Value):
    """Base of all messages to the scheduler."""

    __slots__ = ()


@message
class Seated(News):
    """A worker has come.

    Attributes:
        former: The seat of its predecessor, whose end may not have been reported.
    """

    former: Seat | None


@message
class Begun(News):
    """A worker begins an attempt.

    Attributes:
        at: When it began, monotonic.
    """

    attempt: Attempt
    seat: Seat
    thread: threading.Thread
    at: float


@message
class Finished(News):
    """A worker has finished an attempt, and has its token.

    Attributes:
        error: The exception of the task; None: it has passed.
        text: The traceback of *error*.
    """

    attempt: Attempt
    error: BaseException | None
    text: str


@message
class Asked(News):
    """A worker was asked to stop."""

    seat: Seat


@message
class Gone(News):
    """A worker has ended."""

    seat: Seat


@message
class StopRun(News):
    """The tree of the run was asked to stop."""


@running
class Exchange:
    """The queues between the scheduler and its workers.

    Attributes:
        blueprint: The graph.
        inbox: The messages to the scheduler.
        work: The attempts that are to be run; None sends one worker home.
        seats: The seats by number. The worker of a number writes its entry.
        forks: The number of forks when the run was made.
    """

    blueprint: Blueprint
    inbox: queue.SimpleQueue[News] = attrs.field(factory=queue.SimpleQueue)
    work: queue.SimpleQueue[Attempt | None] = attrs.field(factory=queue.SimpleQueue)
    seats: dict[int, Seat] = attrs.field(factory=dict)
    forks: int = attrs.field(factory=lambda: threads.forks)

    @property
    def is_here(self) -> bool:
        """Whether this process is the one of the run.

        A task or a callback may have forked, and returned in the fork.
        """
        return threads.forks == self.forks


def is_stop(error: BaseException) -> bool:
    """Whether a worker that is asked to stop lets this exception pass."""
    return meaning_of(error) in (Killed, Fenced) or issubclass(type(error), asyncio.CancelledError)
