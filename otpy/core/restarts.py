"""The restart table, the table of acceptable ends, the window and the back-off.

Pure: time and chance arrive as arguments. The window and the back-off know nothing of
each other. The window counts restarts by time and nothing else. The back-off grows with
failures in a row and falls back after calm time.
"""

from __future__ import annotations

import collections
import random
from typing import Literal

from otpy.reports import ExitKind, ExitReason
from otpy.specs import INFINITY, Backoff, Restart
from otpy.values import Value, Word, value


class Fate(Word):
    """What becomes of a child that ended by itself."""

    RESTART = "restart"
    KEEP = "keep the spec"
    FORGET = "forget the spec"


@value
class Verdict(Value):
    """A row of the restart table.

    Attributes:
        fate: What becomes of the child.
        report: Whether a ChildTerminated is reported.
    """

    fate: Fate
    report: bool


VERDICTS = {
    # (restart type, normal-class exit): verdict      OTP: do_restart/3
    (Restart.PERMANENT, True): Verdict(Fate.RESTART, report=True),
    (Restart.PERMANENT, False): Verdict(Fate.RESTART, report=True),
    (Restart.TRANSIENT, True): Verdict(Fate.KEEP, report=False),
    (Restart.TRANSIENT, False): Verdict(Fate.RESTART, report=True),
    (Restart.TEMPORARY, True): Verdict(Fate.FORGET, report=False),
    (Restart.TEMPORARY, False): Verdict(Fate.FORGET, report=True),
}


class Final(Word):
    """How a child ended that was asked to stop, in OTP's words."""

    SHUTDOWN = "shutdown"
    SHUTDOWN_REASON = "{shutdown, _}"
    NORMAL = "normal"
    KILLED = "killed"
    OTHER = "any other"


ACCEPTABLE = {
    # (final, brutal_kill): the restart types that need no ShutdownError
    # docs/explanation/otp.md, "Acceptable ends"
    (Final.SHUTDOWN, False): frozenset(Restart),
    (Final.SHUTDOWN, True): frozenset({Restart.TRANSIENT, Restart.TEMPORARY}),
    (Final.SHUTDOWN_REASON, False): frozenset({Restart.TRANSIENT, Restart.TEMPORARY}),
    (Final.SHUTDOWN_REASON, True): frozenset({Restart.TRANSIENT, Restart.TEMPORARY}),
    (Final.NORMAL, False): frozenset({Restart.TRANSIENT, Restart.TEMPORARY}),
    (Final.NORMAL, True): frozenset({Restart.TRANSIENT, Restart.TEMPORARY}),
    (Final.KILLED, False): frozenset(),
    (Final.KILLED, True): frozenset(Restart),
    (Final.OTHER, False): frozenset(),
    (Final.OTHER, True): frozenset(),
}


def final(reason: ExitReason) -> Final:
    """Translate an exit reason into OTP's words. A crash after a stop request is OTHER."""
    if reason.is_plain_shutdown:
        return Final.SHUTDOWN
    if reason.is_shutdown_with_reason:
        return Final.SHUTDOWN_REASON
    return {ExitKind.NORMAL: Final.NORMAL, ExitKind.KILLED: Final.KILLED}.get(
        reason.kind, Final.OTHER
    )


def is_acceptable(restart: Restart, brutal_kill: bool, reason: ExitReason) -> bool:
    """Whether a child that was asked to stop may end so without a ShutdownError."""
    return restart in ACCEPTABLE[final(reason), brutal_kill]


class Window:
    """The restarts of one supervisor within its period.

    Each restart is one unit, and so is each failed attempt.

    Laws (docs/explanation/otp.md, "The window"):
    1. *intensity* restarts within *period* are allowed, one more is refused, before any
       start attempt. With the intensity "infinity" none is refused, and none is kept.
    2. A restart counts while ``now - then <= period``, the boundary included.
    3. Nothing but time takes a restart out of the window.
    """

    def __init__(self, intensity: int | Literal["infinity"], period: float) -> None:
        self.intensity, self.period = intensity, period
        self._times: collections.deque[float] = collections.deque()

    def spend(self, now: float) -> bool:
        """Record a restart; False: it was one too many."""
        if self.intensity == INFINITY:
            return True
        times = self._times
        times.append(now)
        if now - times[0] > self.period:
            self._forget(now)
        return len(times) <= self.intensity

    def count(self, now: float) -> int:
        """Return how many restarts are in the window."""
        self._forget(now)
        return len(self._times)

    def left(self, now: float) -> int | None:
        """Return how many more restarts would be allowed now; None: any number."""
        if self.intensity == INFINITY:
            return None
        return max(0, self.intensity - self.count(now))

    def _forget(self, now: float) -> None:
        while self._times and now - self._times[0] > self.period:
            self._times.popleft()


class Delays:
    """The waits of one child before its restarts. Without a ``Backoff`` it does not wait.

    Laws:
    1. The first wait is *initial*, each further one *factor* times the one before, none
       longer than *maximum*.
    2. After *reset_after* seconds up, in one piece, the next wait is *initial* again.
       Nothing else resets it.
    3. Jitter changes one wait and is not carried on to the next.
    """

    def __init__(self, backoff: Backoff | None, rng: random.Random) -> None:
        self._backoff, self._rng = backoff, rng
        self._last: float | None = None

    def was_up(self, seconds: float) -> None:
        """Note that the child has been up for so long, without a break."""
        if self._backoff is not None and seconds >= self._backoff.reset_after:
            self._last = None

    def next_wait(self) -> float | None:
        """Return the wait after one more failure, in seconds; None: no wait."""
        if (backoff := self._backoff) is None:
            return None
        self._last = (
            backoff.initial
            if self._last is None
            else min(backoff.maximum, self._last * backoff.factor)
        )
        swing = 1 + backoff.jitter * self._rng.uniform(-1, 1)
        return min(backoff.maximum, self._last * swing)
