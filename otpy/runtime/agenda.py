"""What a supervisor's thread reads next: news, mail, and deadlines that have passed.

Laws:
1. News that is delivered on the supervisor's own thread comes first, then the mail.
2. A deadline counts after the mail that was there when it passed, and before the mail
   that came later. So late news is heard, and a flood of mail holds up no timer.
3. A deadline that is read far too late was hit by a pause of all threads. The other
   threads may deliver their news first.
4. A calm moment is used for work that can wait.

Which thread runs what: ``deliver`` and ``remind`` run on any thread, all the rest on
the supervisor's own thread, which owns the state.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import queue
import threading
from collections.abc import Callable
from typing import Any

from otpy.abc import Clock
from otpy.core.messages import Message
from otpy.runtime.mailbox import Mailbox, Timers
from otpy.runtime.stop_timers import StopTimers
from otpy.values import message

SLIP = 0.02
"""A wait that ends this many seconds late: no thread could run meanwhile."""

BREATH = 0.05
"""After such a wait, the seconds in which the other threads may deliver their news
before a deadline counts."""

CHORES_AFTER = 100
"""After this many messages the chores are done, even if more mail is waiting."""


@message
class Reminder(Message):
    """A note from a kind of child to its supervisor's thread, not for the machine.

    Attributes:
        seconds: How long after this message was read *call* is called.
        call: The function to call. It must not raise.
    """

    seconds: float
    call: Callable[[], object]


@message
class TimeIsUp(Message):
    """The deadline of *ref* has passed. What that means is not known here.

    Attributes:
        at: The deadline by the tree's clock; None: it is due by real time only.
    """

    ref: int
    at: float | None


class Agenda:
    """What is to be read by the thread of one supervisor.

    Attributes:
        news: What was delivered on the supervisor's own thread, and the mail that was
            taken out of the mailbox.
        mailbox: Where every other thread puts messages.
        timers: The deadlines by the tree's clock, one for each ref. A reminder has a
            ref of its own, below zero.
        chores: What can be done for many children at once.
        ident: The number of the supervisor's thread; None: it has not begun.
    """

    def __init__(
        self,
        clock: Clock,
        stops: StopTimers | None,
        leisure: Callable[[], tuple[float, Callable[[], object]] | None],
    ) -> None:
        """Begin with nothing.

        Args:
            clock: The tree's clock.
            stops: The deadlines of stops in real time; None: the tree's clock is real
                time.
            leisure: Returns what to do in a calm moment, and after how many seconds
                without mail; None: nothing.
        """
        self.news: collections.deque[Message] = collections.deque()
        self.mailbox, self.timers = Mailbox(), Timers()
        self.chores: list[Callable[[], object]] = []
        self.ident: int | None = None
        self._clock, self._stops, self._leisure = clock, stops, leisure
        self._has_read_all = False
        self._postponed = 0
        self._reminders: dict[int, Callable[[], object]] = {}
        self._reminder_refs = itertools.count(-1, -1)

    def deliver(self, message: Message) -> None:
        """Take news from a child."""
        if threading.get_ident() == self.ident:
            self.news.append(message)
        else:
            self.mailbox.put(message)

    def remind(self, seconds: float, call: Callable[[], object]) -> None:
        """Have *call* called on the supervisor's thread in so many seconds."""
        self.deliver(Reminder(seconds, call))

    def note(self, reminder: Reminder) -> None:
        """Set the deadline of *reminder*, which was read now."""
        ref = next(self._reminder_refs)
        self._reminders[ref] = reminder.call
        self.timers.arm(ref, self._clock.monotonic() + reminder.seconds)

    def next(self) -> object:
        """Return what is to be read next, waiting for it if there is nothing."""
        while not self.news:
            now, at = self._clock.monotonic(), self.timers.next()
            left = None if at is None else at - now
            if self._stops is not None:
                left = self._stops.sooner(left)
            if left is None or left > 0:
                self._has_read_all = False
                try:
                    return self._wait(left)
                except queue.Empty:
                    if at is not None and self._clock.monotonic() - at >= SLIP:
                        # The other threads could not run, either. Let them deliver
                        # their news first. A deadline that counts now would hit
                        # children that are late only because of this pause.
                        with contextlib.suppress(queue.Empty):
                            self.news.append(self.mailbox.get(BREATH))
            elif not self._has_read_all:
                # A deadline has passed. Read the mail that is there first: it may have
                # the news that the deadline was set for (OTP: receive … after). Take no
                # mail that comes meanwhile, or a flood of it would hold up the timers.
                self.news.extend(self.mailbox.take_all())
                self._has_read_all = True
            else:
                self._has_read_all = False
                self._pop_due(now, at)
        return self.news.popleft()

    def do_chores(self) -> None:
        """Do what can be done for many children at once."""
        self._postponed = 0
        while self.chores:
            self.chores.pop()()

    def _wait(self, seconds: float | None) -> Any:
        """Wait for mail.

        Raises:
            queue.Empty: There was none, or a chore has left news.
        """
        if self.chores:
            self._postponed += 1
            if self._postponed > CHORES_AFTER or self.mailbox.empty():
                self.do_chores()
                if self.news:
                    raise queue.Empty
        leisure = self._leisure()
        if leisure is None or (seconds is not None and seconds <= leisure[0]):
            return self.mailbox.get(seconds)
        calm, work = leisure
        try:
            return self.mailbox.get(calm)
        except queue.Empty:
            work()
            raise

    def _pop_due(self, now: float, at: float | None) -> None:
        """Make news of the first deadline that has passed, or call its reminder."""
        ref = self.timers.pop_due(now)
        if ref is None:
            at = None  # it is due by real time only
        if self._stops is not None:
            ref = self._stops.pop_due(ref, self.timers)
        assert ref is not None, "a deadline that has passed has a ref"
        if ref in self._reminders:
            self._reminders.pop(ref)()
        else:
            self.news.append(TimeIsUp(ref, at))
