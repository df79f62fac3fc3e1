"""Children that call a plain function again and again.

All of it runs in the thread of the child. ``Rhythm`` is pure.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Unpack

from otpy.abc import Birth
from otpy.arguments import check_call, check_function, check_result
from otpy.children.names import name_of, path_of
from otpy.children.thread import ThreadChild
from otpy.exceptions import SpecError
from otpy.runtime import threads
from otpy.runtime.context import Context
from otpy.specs import ChildSpec, Common, check_common, is_number
from otpy.values import Value, running, value

IN_A_COROUTINE = "use coroutine(), with a loop that awaits it and ctx.sleep()"
"""What an error says of an async function."""


def periodic(
    function: Callable[..., object],
    *args: Any,
    id: str | None = None,
    interval: float = 60.0,
    retry_interval: float = 5.0,
    retries: int = 3,
    **common: Unpack[Common],
) -> ChildSpec:
    """Describe a child that calls a function at intervals.

    The first call comes at once, the next one *interval* seconds after the start of the
    one before, without drift. A call that takes longer is followed by the next one at
    once; a call that was missed is not made up for. When the child is asked to stop, it
    does not wait for the next call.

    A function that returns False, and no other false value, has failed softly. That is
    logged, and the next call comes sooner, *retry_interval* seconds after the end of the
    failed one. An exception of the function is a crash of the child as any other.

    Args:
        function: Called as ``function(*args)``, without the context; the function gets
            that from ``otpy.current()``.
        args: Its arguments, the same at each call.
        id: The name of the child among its siblings; default: the name of *function*.
        interval: Seconds from start to start, > 0.
        retry_interval: Seconds, > 0; if it is longer than *interval*, that is used
            instead.
        retries: How many retries in a row may come sooner. If the last of them fails as
            well, the next call comes at the interval, and they are counted anew.
        **common: As for ``thread``. The ``heartbeat`` limits each single call, not the
            wait between two. With ``ready=True`` the child is up when a call has
            returned and has not failed.

    Raises:
        SpecError: A field is wrong, or *function* cannot be called with these arguments.
    """
    check_common("periodic", common)
    name = id if id is not None else name_of(function)
    path = path_of(name, "periodic")
    check_function(path, "function", function, "a callable", IN_A_COROUTINE)
    check_call(path, "function", function, args, "a callable that takes (*args), without ctx")
    _check_numbers(path, interval, retry_interval, retries)
    start = PeriodicStart(function, args, interval, retry_interval, retries)
    return ChildSpec(id=name, start=start, **common)


def _check_numbers(path: str, interval: Any, retry_interval: Any, retries: Any) -> None:
    for field, seconds in (("interval", interval), ("retry_interval", retry_interval)):
        if not is_number(seconds) or seconds <= 0:
            raise SpecError(path, field, seconds, "a finite number of seconds > 0")
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise SpecError(path, "retries", retries, "an int >= 0")


@value
class PeriodicStart(Value):
    """Makes a thread child that calls the function; the ``start`` of its spec."""

    function: Callable[..., object]
    args: tuple[Any, ...]
    interval: float
    retry_interval: float
    retries: int

    def __call__(self, birth: Birth) -> ThreadChild:
        return ThreadChild(birth, functools.partial(self.run, birth.spec.heartbeat))

    def run(self, heartbeat: float | None, ctx: Context) -> None:
        rhythm = Rhythm(self.interval, self.retry_interval, self.retries, due=time.monotonic())
        wait, forks = 0.0, threads.forks
        while not ctx.wait_stop(wait):
            ctx.check_in()
            wait = self._call(ctx, rhythm)
            if threads.forks != forks:
                return  # the function has forked, and returned in the fork
            if heartbeat is not None:
                ctx.check_in(allow=wait + heartbeat)

    def _call(self, ctx: Context, rhythm: Rhythm) -> float:
        """Call once; return the seconds to wait before the next call."""
        started = time.monotonic()
        result = self.function(*self.args)
        check_result(self.function, result, IN_A_COROUTINE)
        failed = result is False
        wait = rhythm.next_wait(started, time.monotonic(), failed=failed)
        if failed:
            ctx.log.warning("call_failed", failures=rhythm.failures, next_call=round(wait, 3))
        else:
            ctx.ready()
        return wait


@running
class Rhythm:
    """Says when the next call is due.

    Laws:
    1. Two calls are due *interval* apart, whenever they really start and however long
       they take.
    2. Except if the first one takes longer, or starts late by as much. Then the rhythm
       begins anew, and no call is made up for.
    3. After a failure the next call is due *retry_interval* after the end of that one,
       *retries* times in a row. After one more failure it is due as if the call had not
       failed.

    Attributes:
        due: The monotonic time at which the next call is due.
        failures: How many calls in a row have failed.
    """

    interval: float
    retry_interval: float
    retries: int
    due: float
    failures: int = 0

    def next_wait(self, started: float, ended: float, *, failed: bool) -> float:
        """Return the seconds to wait after a call, from its end.

        Args:
            started, ended: When the call started and ended, monotonic.
            failed: Whether it has failed softly.
        """
        self.failures = self.failures + 1 if failed else 0
        if self.failures % (self.retries + 1):
            self.due = ended + min(self.retry_interval, self.interval)
        else:
            is_late = started - self.due >= self.interval
            self.due = max((started if is_late else self.due) + self.interval, ended)
        return self.due - ended
