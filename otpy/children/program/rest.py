"""The rest of a program: the processes that run on when its leader has ended.

The watch asks or kills them, and waits for their ends.

Laws:
1. Each process gets each signal once.
2. The end of a process is waited for at the selector of the watch. Then all are looked for
   again: it may have left others.
3. A rest that is given up counts as unstopped as long as one of its processes lives.

The watch calls all methods. The supervisor's thread reads ``stack``, and the thread that
asks for what was left behind reads ``alive``: both read ``living``, which is replaced as a
whole.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import attrs

from otpy.children.program.watch import Watch
from otpy.runtime import descendants, posix
from otpy.runtime.descendants import Family, Seen
from otpy.values import running

WATCHED = 64
"""So many processes are waited for at a time.

When one of them has ended, all are looked for again."""

AGAIN = 0.02
"""Seconds between looks for an end, where the system does not announce it."""


@running
class Rest:
    """The processes that a leader has left.

    Attributes:
        news: Called when one of them has ended.
        group_lives: Returns whether a process is left in the group of the leader; asked
            where /proc does not show which.
        living: The processes that were seen at the last look.
    """

    family: Family
    watch: Watch
    news: Callable[[], object]
    group_lives: Callable[[], bool]
    living: tuple[Seen, ...] = ()
    _sent: set[tuple[int, int, int]] = attrs.field(factory=set, init=False)
    _ends: list[int] = attrs.field(factory=list, init=False)

    def look(self) -> bool:
        """Look for them; return whether one lives."""
        self.let_go()
        if not descendants.is_possible():
            return self.group_lives()
        living = tuple(self.family.living())
        # Those that have ended since the last look may be our zombies. They were
        # remembered, because a zombie shows less of itself than it did in its life.
        for before in self.living:
            now = descendants.look(before.pid)
            if (
                now is not None
                and now.started == before.started
                and now.parent == os.getpid()
                and not now.lives
            ):
                self.watch.adopt(now.pid)
        self.living = living
        return bool(living)

    def send(self, number: int, have_heard: Callable[[Seen], bool] = lambda one: False) -> None:
        """Send a signal to those that have not got it, and wake those that are suspended.

        Args:
            number: The signal.
            have_heard: Returns whether a process has got it in another way.
        """
        for one in self.living or (self._group,):
            key = one.pid, one.started, number
            if key not in self._sent:
                self._sent.add(key)
                if not have_heard(one):
                    self._send(one, number)
                if number != signal.SIGKILL:
                    self._send(one, signal.SIGCONT)

    def _send(self, one: Seen, number: int) -> None:
        if self.living:
            descendants.send(one, number)
        elif not posix.exists(one.group):
            # the leader has been reaped, and its number is only that of the group
            posix.signal_group(one.group, number)

    @property
    def _group(self) -> Seen:
        """Stands for all of the group, where the system does not list its processes."""
        leader = self.family.leader
        return Seen(leader, b"?", 0, group=leader, session=leader, started=0)

    def wait(self) -> None:
        """Have ``news`` called when one of them has ended."""
        if not self.living:
            self.watch.later(AGAIN, self.news)
        for one in self.living[:WATCHED]:
            try:
                fd = posix.open_process(one.pid)
            except ProcessLookupError:
                self.watch.post(self.news)
                return
            if fd is None:
                self.watch.later(AGAIN, self.news)
                return
            self._ends.append(fd)
            self.watch.listen(fd, self.news)

    def let_go(self) -> None:
        """Wait no longer for any of them."""
        while self._ends:
            fd = self._ends.pop()
            self.watch.ignore(fd)
            posix.close(fd)

    @property
    def alive(self) -> bool:
        """Whether one of those that were seen at the last look still lives."""
        return any(
            (now := descendants.look(before.pid)) is not None
            and now.lives
            and now.started == before.started
            for before in self.living
        )

    def stack(self) -> str:
        """Return a line for each of them."""
        if not self.living:
            return f"processes of the group {self.family.leader}, whose leader has ended\n"
        return "".join(f"{descendants.describe(one.pid)}\n" for one in self.living)
