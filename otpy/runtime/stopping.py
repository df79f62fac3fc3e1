"""To wait for the end of a supervisor that was asked to stop, even if it cannot answer.

Laws:
1. No wait for an end is without a limit. A supervisor's thread never blocks, so one
   that does not answer a question is stuck: in code that should not run there, or for
   want of memory. With a deadline, the wait ends at most OVERDUE and PROMPT seconds
   after it, and up to BUSY more if all supervisors answer, or if there are thousands
   of threads, with which they may be at work. Without one, it ends when a
   supervisor has left two questions unanswered, each for PATIENCE seconds.
2. When the deadline has passed, all supervisors that live are asked to stop, also those
   below one that is stuck and passes nothing on.
3. The report names the supervisors that did not answer, and what still runs below them,
   with stacks.

All of this runs on the thread that waits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from otpy.core.messages import CountChildren, StopSupervisor
from otpy.reports import ExitKind, ExitReason, StopReport, Unstopped
from otpy.runtime import stacks, threads
from otpy.runtime.threads import Role, ThreadState
from otpy.runtime.waiting import Reply

if TYPE_CHECKING:
    from otpy.runtime.supervisor import SupervisorThread

OVERDUE = 0.55
"""How many seconds after its deadline a stop may end: what is interrupted at the
deadline has a grace of 0.5 s."""

PROMPT = 0.4
"""How many seconds a supervisor has to answer when the deadline has passed."""

BUSY = 3.0
"""How many more seconds there are when all supervisors answer: they are at work, with
thousands of stuck children."""

A_SECOND = 1000
"""With so many threads a supervisor has a second more to answer, up to BUSY."""

PATIENCE = 5.0
"""How many seconds a supervisor has to answer where there is no deadline. It is asked
twice: when the whole process was suspended, the first answer is late, and the second
one is not."""

Until = Callable[[], float]
"""Returns the monotonic time at which a wait ends; infinity: there is none. It may come
earlier during the wait."""

Wait = Callable[[Reply, Until], bool]
"""How the calling thread waits for a reply; returns whether it is given."""


def never() -> float:
    """Be the end of a wait that has none."""
    return math.inf


def wait_plainly(reply: Reply, until: Until) -> bool:
    """Wait as any thread can; the end of the wait does not move."""
    return reply.is_given_within(until() - time.monotonic())


def await_end(core: SupervisorThread, until: Until, wait: Wait = wait_plainly) -> StopReport:
    """Wait for the end of *core*, which was asked to stop, and return its report.

    If it does not come in time, the report says what is known without it.

    Args:
        until: When it should have ended.
    """
    began = time.monotonic()

    def limit() -> float:
        return until() + OVERDUE

    while not wait(core.done, _within(PATIENCE, limit)):
        if limit() <= time.monotonic() or _is_stuck(core, limit, wait):
            return _insist(core, wait, began)
    return _report(core)


def _within(seconds: float, until: Until = never) -> Until:
    at = time.monotonic() + seconds
    return lambda: min(at, until())


def _report(core: SupervisorThread) -> StopReport:
    report: StopReport = core.done.wait(0.0, core.path)
    return report


def _is_stuck(core: SupervisorThread, until: Until, wait: Wait) -> bool:
    """Ask all supervisors there, and those that are silent once more."""
    silent = _ask(core, _alive(core), wait, _within(PATIENCE, until))
    return bool(silent) and bool(_ask(core, silent, wait, _within(PATIENCE, until)))


def _insist(core: SupervisorThread, wait: Wait, began: float) -> StopReport:
    """Stop by force what can be reached, and look who answers."""
    alive = _alive(core)
    for one in alive:
        one.mailbox.put(StopSupervisor(0.0))
    many = min(BUSY, len(threads.entries(core.tree)) / A_SECOND)
    latest = _within(PROMPT + BUSY)
    silent = _ask(core, alive, wait, _within(PROMPT + many))
    if not silent and not wait(core.done, latest):
        silent = _alive(core)
    return (
        _report(core)
        if core.done.is_given
        else _report_without(core, silent, time.monotonic() - began)
    )


def _alive(core: SupervisorThread) -> list[SupervisorThread]:
    """Return the supervisors at and below *core* that have not ended."""
    found = [
        one
        for one in list(core.tree.directory.values())
        if one.alive and _is_within(one.path, core.path)
    ]
    return sorted(found, key=lambda one: one.path)


def _is_within(name: str, path: str) -> bool:
    """Whether *name*, a path or the name of a thread, is at or below *path*."""
    return name == path or name.startswith((f"{path}/", f"{path} ("))


def _ask(
    core: SupervisorThread, those: list[SupervisorThread], wait: Wait, until: Until
) -> list[SupervisorThread]:
    """Ask *those* for an answer, side by side; return the silent ones.

    All of them may be silent when *core* has ended.
    """
    replies = [(one, Reply()) for one in those]
    heard = Reply()

    def is_silent(asked: tuple[SupervisorThread, Reply]) -> bool:
        # A supervisor that refuses has closed its mailbox. If it has not ended since, it
        # is stuck in its last steps: a refusal is no answer then.
        one, reply = asked
        return one.alive and not (reply.is_given and not reply.is_refused)

    def look() -> None:
        if core.done.is_given or not any(map(is_silent, replies)):
            heard.answer(None)

    for one, reply in replies:
        reply.when_given(look, look)
        one.mailbox.put(CountChildren(reply=reply, inside=None))
    core.done.when_given(look, look)
    wait(heard, until)
    return [asked[0] for asked in replies if is_silent(asked)]


def _report_without(
    core: SupervisorThread, silent: list[SupervisorThread], seconds: float
) -> StopReport:
    paths = tuple(one.path for one in silent)
    return StopReport(
        path=core.path,
        reason=ExitReason(ExitKind.KILLED, detail=f"no answer from {', '.join(paths)}"),
        unstopped=(*core.tree.unstopped(core.path), *map(_still_running, _left(core, paths))),
        unanswered=paths,
        duration=seconds,
    )


def _left(core: SupervisorThread, silent: tuple[str, ...]) -> list[threads.Entry]:
    """Return the threads of *silent* supervisors and of children that still run."""
    return [
        one
        for one in threads.entries(core.tree)
        if (one.role in (Role.CHILD, Role.LOOP) and _is_within(one.name, core.path))
        or one.name in silent
        if one.state is ThreadState.RUNNING and one.alive
    ]


def _still_running(entry: threads.Entry) -> Unstopped:
    reason = ExitReason(ExitKind.KILLED, detail="its supervisor did not answer")
    stack = stacks.stack_of(entry.thread.ident)
    return Unstopped(
        path=entry.name, thread=entry.name, reason=reason, stack=stack, time=time.time()
    )
