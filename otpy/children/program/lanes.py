"""Lanes: threads that hand output on, so that the watch waits for none of it.

Laws:
1. A log file, a stream of this process, a callable of the user's and a search for a
   pattern may take their time. Each has a lane, and so a thread of its own while it has
   something to do. If a lane is too slow, the program that writes has to wait, as with any
   pipe. The other programs and this process do not.
2. A file, a stream of this process, and a callable of one child have one lane each: however
   many programs write to the file, and however often they are restarted while it takes
   nothing.
3. What waits in a lane is bounded.

Not proud of: where the system has no thread to give, the thread that puts a call makes
it, and waits for it. That may be the watch.

Threads: calls run on the thread of their lane. The watch calls ``put``, ``has_room``
and ``leave``; a launcher makes and uses new lanes; a supervisor's thread detaches them. One
lock, the door, guards all lanes. It is held for a few steps and for the start of a thread,
never during a call.
"""

from __future__ import annotations

import collections
import errno
import os
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

from otpy.children.program.logfiles import LogFile
from otpy.runtime import log, threads
from otpy.runtime.threads import Role, ThreadState

BACKLOG = 1024 * 1024
"""How many bytes may wait in a lane before the program has to."""

FULL, OVERFULL = 4 * BACKLOG, 8 * BACKLOG
"""How many bytes a lane holds of programs that end again and again while it is stuck.

Output is refused above the first of them, and the ends of outputs above the second."""

EACH = 256
"""How many bytes a call that waits costs besides its data."""

IDLE = 1.0
"""Seconds for which the thread of a lane waits for more to do before it ends."""


class Sink(Protocol):
    """A place where output goes."""

    def add(self, data: bytes) -> object:
        """Take *data*."""

    def close(self) -> object:
        """Note that nothing more comes."""


_door = threading.Lock()
_lanes: dict[Hashable, Lane] = {}

Call = tuple[Callable[[], object], int]
"""A call, and how many bytes it costs while it waits."""


class Lane:
    """Makes calls one after the other, on a thread that runs while there are any.

    Attributes:
        key: By which those who share it find it; None: it is not shared.
        file: The log file that the calls write to, if they do. It is closed when the lane
            has no user any more.
    """

    def __init__(self, key: Hashable, file: LogFile | None) -> None:
        self.key, self.file = key, file
        self._name = ""
        self._owner: object = None
        self._calls: collections.deque[Call] = collections.deque()
        self._waiting = self._users = 0
        self._news = threading.Condition(_door)
        self._thread: threading.Thread | None = None
        self._resumes: set[Callable[[], object]] = set()
        self._stays = self._is_detached = self._is_open = False

    # Called by the threads that use the lane

    def belong_to(self, name: str, owner: object) -> None:
        """Count one more user; under the door.

        Args:
            name, owner: Of the thread that is started next.
        """
        self._users += 1
        self._name, self._owner, self._is_detached = name, owner, False

    def put(self, call: Callable[[], object], size: int, limit: int) -> bool:
        """Have *call* made, which keeps *size* bytes.

        Returns:
            False: more than *limit* bytes wait already, and the call is not made.
        """
        with _door:
            if self._waiting > limit:
                return False
            self._calls.append((call, size + EACH))
            self._waiting += size + EACH
            self._is_open = self.file is not None
            # Under the door the thread cannot end between this look and the notice: it
            # gives up its place under the door as well, and only if it has no call.
            is_served = self._thread is not None or self._start()
            self._news.notify()
        if not is_served:
            self._run_here()
        return True

    def stay(self) -> None:
        """Start the thread now, and keep it as long as the lane has users.

        For a callable of the user's, which may tie things to its thread.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        with _door:
            self._stays = True
            if self._thread is None and not self._start():
                raise RuntimeError("can't start new thread")

    def has_room(self, resume: Callable[[], object]) -> bool:
        """Return whether more may be put.

        Args:
            resume: If not, called once when it may, on the thread of the lane.
        """
        with _door:
            has_room = self._waiting <= BACKLOG
            if not has_room:
                self._resumes.add(resume)
        return has_room

    def leave(self, resume: Callable[[], object]) -> None:
        """Count one user less: it puts nothing more, and its *resume* is not called."""
        with _door:
            self._users -= 1
            self._resumes.discard(resume)
            is_served = self._thread is not None or self._users > 0
            self._news.notify()
        if not is_served:
            self._run_here()

    def detach(self) -> None:
        """Let its thread go: the end of the tree does not wait for it."""
        with _door:
            self._is_detached = True
            self._mark()

    def _start(self) -> bool:
        """Start the thread; return whether the system has had one. Under the door."""
        try:
            self._thread = threads.spawn(
                lambda: self._run(IDLE),
                name=self._name,
                role=Role.HANDLER,
                purpose="hands output on",
                owner=self._owner,
            )
        except (RuntimeError, MemoryError):
            return False
        self._mark()
        return True

    def _mark(self) -> None:
        if self._is_detached and self._thread is not None:
            threads.mark(self._thread, ThreadState.DETACHED)

    def _run_here(self) -> None:
        """Make the calls on this thread, because the system has no thread to give.

        At the interpreter's end it is better to wait here than to lose output.
        """
        # Another thread may have begun to make them since the door was left.
        with _door:
            if self._thread is not None:
                return
            self._thread = threading.current_thread()
        self._run(0.0)

    # On the thread of the lane

    def _run(self, idle: float) -> None:
        forks = threads.forks
        while (next := self._next(idle)) is not None:
            call, size = next
            try:
                call()
            except BaseException as error:
                log.complain("output_lost", error, name=self._name)
            # the call has forked, and this is the fork: the lane is its parent's
            if threads.forks != forks:
                return
            # a lane that waits must not keep a program alive
            del call, next
            for resume in self._resumes_after(size):
                resume()

    def _next(self, idle: float) -> Call | None:
        """Return the next call; None: the thread ends."""
        with _door:
            while not self._calls and self._users:
                # A thread that makes a call for want of another one has no time to stay.
                if not self._news.wait(None if self._stays and idle else idle):
                    break
            if self._calls:
                return self._calls.popleft()
            if not self._users and self.file is not None and self._is_open:
                # To close it may take its time, so it is a call like others. Until it
                # is made, another thread can find the lane and use it again.
                self._is_open = False
                return self.file.close, 0
            if not self._users and _lanes.get(self.key) is self:
                del _lanes[self.key]
            self._thread = None
            return None

    def _resumes_after(self, size: int) -> list[Callable[[], object]]:
        """Count a call of *size* bytes as made; return what is resumed now."""
        with _door:
            self._waiting -= size
            # at half of it, not at once: or each chunk would wake both threads
            if self._waiting > BACKLOG / 2:
                return []
            resumes, self._resumes = list(self._resumes), set()
            return resumes


def lane(key: Hashable, *, name: str, owner: object, path: str | None = None) -> Lane:
    """Return the lane of *key*; a new one if none has this key, or it is None.

    Each use ends with ``leave``.

    Args:
        name, owner: Of its thread.
        path: Of the log file that the calls write to.
    """
    with _door:
        found = _lanes.get(key)
        if found is None:
            found = Lane(key, None if path is None else LogFile(path))
            if key is not None:
                _lanes[key] = found
        found.belong_to(name, owner)
        return found


class Handout:
    """Gives the output of one pipe to a sink, on the thread of a lane.

    The watch calls all methods but ``detach``, which the supervisor's thread calls.

    Attributes:
        is_done: Whether the sink has got all, and has been closed. The lane's thread sets
            it, and resumes the watch after that.
    """

    def __init__(
        self,
        lane: Lane,
        sink: Sink,
        *,
        resume: Callable[[], object],
        failed: Callable[[OSError], object],
    ) -> None:
        """Make one.

        Args:
            resume: Called on the lane's thread when the lane has room again, and when the
                sink has got all.
            failed: Called with the error when output is lost because the lane is stuck.
        """
        self._lane, self._sink, self._resume, self._failed = lane, sink, resume, failed
        self._has_failed = self.is_done = False

    def add(self, data: bytes) -> None:
        """Queue *data*."""
        if not self._lane.put(partial(self._sink.add, data), len(data), FULL):
            self._fail()

    def close(self) -> None:
        """Close the sink when it has got all that is queued."""
        if not self._lane.put(self._finish, 0, OVERFULL):
            self._fail()
        self._lane.leave(self._resume)

    def wants_more(self) -> bool:
        """Whether the lane has room."""
        return self._lane.has_room(self._resume)

    def detach(self) -> None:
        """Let the thread of the lane go."""
        self._lane.detach()

    def give_up(self) -> None:
        """Wait no longer until the sink has got all.

        What is queued may still be written, and keeps no program alive.
        """
        if not self.is_done:
            self._fail()
            self._resume = self._failed = _nothing

    def _fail(self) -> None:
        if not self._has_failed:
            self._has_failed = True
            text = "it takes nothing more; what was written last may be lost"
            self._failed(TimeoutError(errno.ETIMEDOUT, text))

    def _finish(self) -> None:
        """Close the sink; on the thread of the lane."""
        self._sink.close()
        # before it resumes the watch, which looks at this then
        self.is_done = True
        self._resume()


def _nothing(*_: object) -> None:
    pass


def _after_fork() -> None:
    """Begin anew in a fork: it has none of the threads, and one may hold the door."""
    global _door  # noqa: PLW0603
    _door = threading.Lock()
    _lanes.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process forks
    os.register_at_fork(after_in_child=_after_fork)
