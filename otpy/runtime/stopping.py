"""How a thread waits for the end of a supervisor, even if that cannot answer.

Laws:
1. No wait for an end is without a limit. A supervisor's thread never blocks. So a
   supervisor that does not answer a question is stuck: in code that should not run on
   its thread, or for want of memory.
2. With a deadline, the wait ends at most OVERDUE and PROMPT seconds after it. It may
   end up to BUSY seconds later if all supervisors answer, or if the tree has thousands
   of threads: then they are at work.
3. Without a deadline, the wait ends when a supervisor has left two questions
   unanswered, each for TO_ANSWER seconds.
4. When the deadline has passed, all supervisors that live are asked to stop at once.
   One that is stuck passes nothing on to those below it.
5. The report names the supervisors that did not answer, and what still runs below them,
   with stacks.

The thread that waits runs all of this.
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
"""Seconds after its deadline at which a stop may end. A child that is interrupted at
the deadline has a grace of 0.5 s."""

PROMPT = 0.4
"""Seconds that a supervisor has to answer when the deadline has passed."""

BUSY = 3.0
"""Further seconds if all supervisors answer. They are at work then, perhaps with
thousands of stuck children."""

A_SECOND = 1000
"""For each so many threads of the tree a supervisor has a second more to answer, up to
BUSY."""

TO_ANSWER = 5.0
"""Seconds that a supervisor has to answer where there is no deadline. It is asked
twice: after a pause of the whole process the first answer is late, and the second one
is not."""

Until = Callable[[], float]
"""Returns the monotonic time at which a wait ends; infinity: the wait has no limit. The
time may become earlier during the wait."""

Wait = Callable[[Reply, Until], bool]
"""How the calling thread waits for a reply. Returns whether the reply was given."""


def never() -> float:
    """Return the end of a wait that has no limit."""
    return math.inf


def wait_plainly(reply: Reply, until: Until) -> bool:
    """Wait in a way that works on any thread. The end of the wait does not move."""
    return reply.is_given_within(until() - time.monotonic())


def await_end(core: SupervisorThread, until: Until, wait: Wait = wait_plainly) -> StopReport:
    """Wait for the end of *core*, which was asked to stop, and return its report.

    If it does not end in time, the report has what is known without it.

    Args:
        core: A supervisor.
        until: Returns when it should have ended.
        wait: How the calling thread waits.
    """
    began = time.monotonic()

    def limit() -> float:
        return until() + OVERDUE

    while not wait(core.done, _within(TO_ANSWER, limit)):
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
    """Ask all supervisors at and below *core*, and ask the silent ones once more."""
    silent = _ask(core, _alive(core), wait, _within(TO_ANSWER, until))
    return bool(silent) and bool(_ask(core, silent, wait, _within(TO_ANSWER, until)))


def _insist(core: SupervisorThread, wait: Wait, began: float) -> StopReport:
    """Stop by force what can be reached; report without *core* if need be."""
    alive = _alive(core)
    for one in alive:
        one.mailbox.put(StopSupervisor(0.0))
    many = min(BUSY, len(threads.entries(core.tree)) / A_SECOND)
    latest = _within(PROMPT + BUSY)
    silent = _ask(core, alive, wait, _within(PROMPT + many))
    if not silent and not wait(core.done, latest):
        silent = _alive(core)
    if core.done.is_given:
        return _report(core)
    paths = tuple(one.path for one in silent)
    left = [
        one
        for one in threads.entries(core.tree)
        if one.state is ThreadState.RUNNING and one.alive and _is_left(one, core.path, paths)
    ]
    return StopReport(
        path=core.path,
        reason=ExitReason(ExitKind.KILLED, detail=f"no answer from {', '.join(paths)}"),
        unstopped=(*core.tree.unstopped(core.path), *map(_still_running, left)),
        unanswered=paths,
        duration=time.monotonic() - began,
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

    The wait ends early when *core* has ended. Then all of them may be silent.
    """
    replies = [(one, Reply()) for one in those]
    heard = Reply()

    def is_silent(asked: tuple[SupervisorThread, Reply]) -> bool:
        # A supervisor that refuses has closed its mailbox. If it has not ended since
        # then, it is stuck in its last steps, and the refusal is no answer.
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


def _is_left(entry: threads.Entry, path: str, silent: tuple[str, ...]) -> bool:
    """Whether *entry* is a silent supervisor's thread, or runs a child below *path*."""
    is_child = entry.role in (Role.CHILD, Role.LOOP) and _is_within(entry.name, path)
    return is_child or entry.name in silent


def _still_running(entry: threads.Entry) -> Unstopped:
    reason = ExitReason(ExitKind.KILLED, detail="its supervisor did not answer")
    stack = stacks.stack_of(entry.thread.ident)
    return Unstopped(
        path=entry.name, thread=entry.name, reason=reason, stack=stack, time=time.time()
    )
