"""How a child ends, whatever its kind: the reason, and what is released after it.

Laws:
1. No function here runs code of an exception's class, or opens a sealed one.
2. The locals of an earlier incarnation are released when the next one has ended, on the
   thread of the child. The lines of the traceback stay.
3. No frame is cleared that did not run in an earlier incarnation of this child.

All functions are called on the thread that the child has run in.
"""

from __future__ import annotations

import inspect
import opcode
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Protocol

from otpy.abc import Birth
from otpy.children.moments import WRAPPERS
from otpy.exceptions import (
    Fatal,
    Fenced,
    Ignore,
    Killed,
    Sealed,
    Shutdown,
    lineage,
    meaning_of,
    means_success,
)
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitKind, ExitReason

# Why a child has ended

KINDS: dict[type[BaseException] | None, ExitKind] = {
    # what a child's exception means (exceptions.meaning_of): how the child has ended,
    # if it had not been asked to stop
    Killed: KILLED,
    Fenced: KILLED,
    Fatal: CRASHED,
    Shutdown: SHUTDOWN,
    Ignore: NORMAL,
    None: CRASHED,
}

ASKED_AND_ENDED = ExitReason(SHUTDOWN)
"""The reason of a child that was asked to stop, and returned."""


class Ended(Protocol):
    """What must be known of a child to say why it has ended. A context has it."""

    @property
    def running(self) -> bool:
        """Whether the child had not been asked to stop."""

    @property
    def is_ready(self) -> bool:
        """Whether the start was complete."""


def reason_of(error: BaseException | Sealed | None, ctx: Ended) -> ExitReason:
    """Return why a child has ended that raised *error*, or returned if that is None."""
    if means_success(error):
        error = None
    meaning = meaning_of(error)
    if not ctx.running and meaning not in (Killed, Fenced):
        return ExitReason(SHUTDOWN, error) if error is not None else ASKED_AND_ENDED
    if error is None:
        return ExitReason(
            NORMAL, detail=None if ctx.is_ready else "it returned before it was ready"
        )
    return ExitReason(KINDS[meaning], error)


# What an earlier incarnation has left

SUSPENDS = (
    inspect.CO_GENERATOR
    | inspect.CO_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_ITERABLE_COROUTINE
)
"""The flags of functions whose frames may wait without being called."""

YIELDS = {
    opcode.opmap[name] for name in ("YIELD_VALUE", "RETURN_GENERATOR") if name in opcode.opmap
}
"""The instructions at which such a frame waits."""

TRACEBACK: Callable[[BaseException], TracebackType | None] = vars(BaseException)[
    "__traceback__"
].__get__


def forget_past(past: ExitReason | None, birth: Birth) -> None:
    """Release the crash before this one, when this one has been reported.

    The frames of a crash hold the child, its context, and what the child has made of
    ``ctx.last_exit``. So each crash would keep the one before alive, with all its
    locals, for ever.

    Release them here, not on the supervisor's thread, and only after the exit was
    reported: their finalizers may be slow.

    Args:
        past: Why the incarnation before has ended; None: there was none.
        birth: Of this incarnation.
    """
    # A sealed exception has no frames in this process.
    if past is not None and not issubclass(type(past.raised), Sealed):
        try:  # noqa: SIM105 - suppress() is three calls
            release_locals(past.raised, birth)  # type: ignore[arg-type]
        except BaseException:  # noqa: S110 - what the finalizers of the locals have raised
            pass


def release_locals(error: BaseException | None, birth: Birth) -> None:
    """Release the locals of earlier incarnations in the tracebacks of *error*.

    The tracebacks of all exceptions that led to it are included. Frames that are not
    those of an earlier incarnation stay as they are. Another part of the parent process
    that has raised the same exception has put its own frames into the traceback; and a
    coroutine whose frame is cleared while it waits ends.
    """
    known: dict[FrameType, bool] = {}
    for one in lineage(error):
        found, caller, is_ours = TRACEBACK(one), None, False
        while found is not None:
            frame = found.tb_frame
            # If the frame before has called this one, its verdict holds for this one
            # too.
            if caller is None or frame.f_back is not caller:
                is_ours = _is_of_the_past(frame, birth, known)
            if is_ours:
                try:  # noqa: SIM105 - suppress() is three calls, at each frame
                    frame.clear()
                except RuntimeError:
                    pass  # it still runs
            caller, found = frame, found.tb_next


def _is_of_the_past(frame: FrameType, birth: Birth, known: dict[FrameType, bool]) -> bool:
    """Whether *frame* belongs to an earlier incarnation of the child, and has ended.

    It does if one of WRAPPERS has called it, as a method of that incarnation.

    Args:
        frame: The frame in question.
        birth: Of the present incarnation.
        known: The verdicts that are known already; new ones are added.
    """
    way: list[FrameType] = []
    above: FrameType | None = frame
    while above is not None and above not in known and above.f_code not in WRAPPERS:
        way.append(above)
        above = above.f_back
    if above is None:
        verdict = bool(way) and _has_run_out(way[-1])
    elif above in known:
        verdict = known[above]
    else:
        child = above.f_locals.get("self")  # None: that frame has been cleared
        other = birth if child is None else child.birth
        verdict = other.handover is birth.handover and other.incarnation < birth.incarnation
        known[above] = verdict
    known.update(dict.fromkeys(way, verdict))
    return verdict


def _has_run_out(frame: FrameType) -> bool:
    """Whether *frame* is that of a coroutine that has ended.

    CPython 3.11, 3.14 and later forget what has called a coroutine when it ends. One
    that waits is at the instruction that yields, and has its frame (``f_generator``).
    """
    if (3, 12) <= sys.version_info < (3, 14) or not frame.f_code.co_flags & SUSPENDS:
        return False
    if sys.version_info >= (3, 14):
        return frame.f_generator is None
    return frame.f_code.co_code[frame.f_lasti] not in YIELDS
