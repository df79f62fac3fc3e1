"""What programs write: the last of it for the exit reason, log files, lines for callables and for probes.

Laws:
1. What is kept or queued is bounded, however much a program writes.
2. A file that cannot be written costs the output that does not fit, and nothing else. It is reported once, until it
   works again, and in the file itself where output is missing.
3. A log file, a stream of this process, a callable of the user's and a search for a
   pattern may take their time. Each has a thread of its own while it has something to do.
   If it is too slow, the program that writes has to wait, as with any pipe. The other
   programs and this process do not.
4. A file, a stream of this process, and a callable of one child have one ``Lane`` each, and
   so one thread: however many programs write to the file, and however often they are
   restarted while it takes nothing.

Who runs what: ``Tail``, and all of ``Stream`` and ``Handout``, run on the thread that waits
for the programs, see watch.py. Sinks of a handout (``Journal``, ``Scan``, ``Lines``) run on
the thread of its lane. One lock, the door, guards all lanes. It is held for a few steps and
for the start of a thread, never during a call of a lane.
"""

from __future__ import annotations

import codecs
import collections
import errno
import os
import threading
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

import attrs

from otpy.arguments import check_result
from otpy.children.program.logfiles import LogFile
from otpy.children.program.patterns import Finder
from otpy.exceptions import show
from otpy.runtime import log, threads
from otpy.runtime.threads import Role, ThreadState
from otpy.values import running

CHUNK = 64 * 1024
TAIL = 64 * 1024
"""How many bytes of a program's stderr its exit reason holds."""

BACKLOG = 1024 * 1024
"""How many bytes may wait in a lane before the program has to."""

FULL, OVERFULL = 4 * BACKLOG, 8 * BACKLOG
"""How many bytes, and at last how many of all, a lane holds of programs that end again and again while it is stuck."""

EACH = 256
"""How many bytes a call that waits costs besides its data."""

IDLE = 1.0
"""Seconds for which the thread of a lane waits for more to do before it ends."""

LONG = 64 * 1024
"""A line that is longer than so many characters is cut."""

LAST_READS = 32
"""How often a pipe is read after the end of its program; for a stranger that goes on writing into it."""


class Tail:
    """The last bytes of what was added."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Add *data*; forget what is too old."""
        self._data += data
        if len(self._data) > 2 * TAIL:  # not each time: to move the rest to the front costs a copy
            del self._data[:-TAIL]

    def close(self) -> None:
        """Keep it."""

    def __bytes__(self) -> bytes:
        return bytes(self._data[-TAIL:])


class Sink(Protocol):
    """Where output goes."""

    def add(self, data: bytes) -> object:
        """Take *data*."""

    def close(self) -> object:
        """That was all."""


# What runs on the thread of a lane


class Lines:
    """Cuts a stream of bytes into lines of text: UTF-8, what is none replaced; without the line's end."""

    def __init__(self, handler: Callable[[str], object]) -> None:
        self._handler = handler
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest: list[str] = []
        self._length = 0

    def add(self, data: bytes) -> None:
        """Call the handler with each line that is complete now."""
        self._feed(self._decoder.decode(data))

    def close(self) -> None:
        """Call the handler with what is left without an end."""
        self._feed(self._decoder.decode(b"", final=True))
        if self._length:
            self._handler(self._take_rest())

    def _feed(self, text: str) -> None:
        first, *others = text.split("\n")
        self._keep(first)
        for other in others:
            self._handler(self._take_rest().removesuffix("\r"))
            self._keep(other)

    def _keep(self, part: str) -> None:
        """Add *part* to the line that has no end yet; the parts are put together once, or each would copy all."""
        while self._length + len(part) > LONG:
            room = LONG - self._length
            self._rest.append(part[:room])
            part = part[room:]
            self._handler(self._take_rest())
        if part:
            self._rest.append(part)
            self._length += len(part)

    def _take_rest(self) -> str:
        rest, self._rest, self._length = self._rest, [], 0
        return "".join(rest)


class Scan(Lines):
    """Looks for a line in which a pattern is found, until there has been one."""

    def __init__(self, pattern: str, found: Callable[[], object]) -> None:
        super().__init__(self._look)
        self._found: Callable[[], object] | None = found
        self._finder = Finder(pattern)

    def add(self, data: bytes) -> None:
        """Look at *data*."""
        if self._found is not None:
            super().add(data)

    def _look(self, line: str) -> None:
        if self._found is not None and self._finder.finds_it_in(line):
            found, self._found = self._found, None
            found()


@running(frozen=True)
class Called:
    """Calls a handler of the user's; what it raises is logged, and the next line comes all the same."""

    handler: Callable[[str], object]
    path: str

    def __call__(self, line: str) -> None:
        try:
            check_result(self.handler, self.handler(line))
        except BaseException as error:
            log.complain(
                "output_handler_failed",
                error,
                given=line,
                handler=show(self.handler),
                path=self.path,
            )


@running
class Journal:
    """What one run of a program writes to a log file. It notes in the file what is missing there.

    Attributes:
        file: The file; other programs may write to it as well, on the same lane.
        size, backups: See ``LogFile.write``.
        failed: Called with the error when writing fails after it has worked.
    """

    file: LogFile
    size: int
    backups: int
    failed: Callable[[OSError], object]
    _lost: int = 0

    def add(self, data: bytes) -> None:
        """Append *data*, or count it as lost."""
        left = bytearray(self._note() + data)
        try:
            self.file.write(left, self.size, self.backups)
            self._lost = 0
        except OSError as error:
            self.file.close()  # or one that was removed would never be made again
            if not self._lost:
                self.failed(error)
            self._lost += min(len(left), len(data))

    def close(self) -> None:
        """Note what is still missing. The file stays open for others; its lane closes it."""
        if self._lost:
            self.add(b"")

    def _note(self) -> bytes:
        if not self._lost:
            return b""
        return (
            b"\n" * self.file.is_in_a_line
            + b"--- otpy: %d bytes are missing here ---\n" % self._lost
        )


# Lanes


_door = threading.Lock()
_lanes: dict[Hashable, Lane] = {}

Call = tuple[Callable[[], object], int]


class Lane:
    """Calls that are made one after the other, on a thread of its own that is there while there are any.

    Attributes:
        key: By which those who share it find it; None: it is not shared.
        file: The log file that the calls write to, if they do. It is closed when nobody uses the lane any more.
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

    def belong_to(self, name: str, owner: object) -> None:
        """Count one more user; its *name* and *owner* are those of the thread that is started next. Under the door."""
        self._users += 1
        self._name, self._owner, self._is_detached = name, owner, False

    def put(self, call: Callable[[], object], size: int, limit: int) -> bool:
        """Have *call* made; return False, and forget it, if more than *limit* bytes wait already."""
        with _door:
            if self._waiting > limit:
                return False
            self._calls.append((call, size + EACH))
            self._waiting += size + EACH
            self._is_open = self.file is not None
            is_served = self._thread is not None or self._start()
            self._news.notify()
        if not is_served:
            self._run_here()
        return True

    def stay(self) -> None:
        """Start the thread now, and keep it until nobody uses the lane: the user's code may tie things to it.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        with _door:
            self._stays = True
            if self._thread is None and not self._start():
                raise RuntimeError("can't start new thread")

    def has_room(self, resume: Callable[[], object]) -> bool:
        """Whether more may be put. If not, *resume* is called when it may, once, on the lane's thread."""
        with _door:
            has_room = self._waiting <= BACKLOG
            if not has_room:
                self._resumes.add(resume)
        return has_room

    def leave(self, resume: Callable[[], object]) -> None:
        """Say that one of its users puts nothing more, and is not to be resumed."""
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
        """Start the thread; return whether the system has had one."""
        target, purpose = lambda: self._run(IDLE), "hands output on"
        try:
            self._thread = threads.spawn(
                target, name=self._name, role=Role.HANDLER, purpose=purpose, owner=self._owner
            )
        except (RuntimeError, MemoryError):
            return False
        self._mark()
        return True

    def _mark(self) -> None:
        if self._is_detached and self._thread is not None:
            threads.mark(self._thread, ThreadState.DETACHED)

    def _run_here(self) -> None:
        """There is no thread to be had: at the interpreter's end it is better to wait here than to lose output."""
        with _door:
            if self._thread is not None:
                return
            self._thread = threading.current_thread()
        self._run(0.0)

    def _run(self, idle: float) -> None:
        forks = threads.forks
        while (next := self._next(idle)) is not None:
            call, size = next
            try:
                call()
            except BaseException as error:
                log.complain("output_lost", error, name=self._name)
            if threads.forks != forks:
                return
            del call, next  # a lane that waits must not keep a program alive
            for resume in self._settle(size):
                resume()

    def _next(self, idle: float) -> Call | None:
        """Return the next call; None: the thread is to end, and is no longer that of the lane."""
        with _door:
            while (
                not self._calls and self._users and self._news.wait(None if self._stays else idle)
            ):
                pass
            if self._calls:
                return self._calls.popleft()
            if not self._users and self.file is not None and self._is_open:
                self._is_open = False
                return (
                    self.file.close,
                    0,
                )  # may take its time; until then the lane can be found and used again
            if not self._users and _lanes.get(self.key) is self:
                del _lanes[self.key]
            self._thread = None
            return None

    def _settle(self, size: int) -> list[Callable[[], object]]:
        """Note that a call was made; return what is to be resumed."""
        with _door:
            self._waiting -= size
            if self._waiting > BACKLOG / 2:  # not at once, or each chunk would wake both threads
                return []
            resumes, self._resumes = list(self._resumes), set()
            return resumes


def lane(key: Hashable, *, name: str, owner: object, path: str | None = None) -> Lane:
    """Return the lane of *key*, made if there is none; None: a new one. Each use ends with ``leave``.

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
    """Gives what comes out of one pipe to a sink, on the thread of a lane.

    Attributes:
        is_done: Whether the sink has got all, and has been closed.
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
            resume: Called on the lane's thread when there is room again, and when all is done.
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
        """Whether there is room."""
        return self._lane.has_room(self._resume)

    def detach(self) -> None:
        """Let its thread go."""
        self._lane.detach()

    def give_up(self) -> None:
        """Wait no longer until it is done. What is queued may still be written, and keeps no program alive."""
        if not self.is_done:
            self._fail()
            self._resume = self._failed = _nothing

    def _fail(self) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._failed(
                TimeoutError(
                    errno.ETIMEDOUT, "it takes nothing more; what was written last may be lost"
                )
            )

    def _finish(self) -> None:
        self._sink.close()
        self.is_done = True
        self._resume()


def _nothing(*_: object) -> None:
    pass


def _after_fork() -> None:
    """None of the threads exists in a fork, and one may have held the door."""
    global _door  # noqa: PLW0603
    _door = threading.Lock()
    _lanes.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_after_fork)


# What runs on the watch's thread


@running
class Stream:
    """The pipe of one program, and where its output goes.

    Attributes:
        fd: Our end; None when it is closed.
        sinks: What gets the output, in this order.
        handouts: Those of them that may make the program wait.
    """

    fd: int | None
    sinks: list[Sink] = attrs.field(factory=list)
    handouts: list[Handout] = attrs.field(factory=list)

    def hand_to(self, handout: Handout) -> None:
        """Give the output to *handout* as well, from now on."""
        self.sinks.append(handout)
        self.handouts.append(handout)

    def drop(self, handout: Handout) -> None:
        """Give nothing more to *handout*."""
        if self.fd is not None and handout in self.handouts:
            self.sinks.remove(handout)
            self.handouts.remove(handout)
            handout.close()

    def read(self) -> int | None:
        """Read once and hand it on; return how many bytes: 0 at the end, None if there are none now."""
        if self.fd is None:
            return None
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return None
        if data:
            for sink in self.sinks:
                sink.add(data)
        return len(data)

    @property
    def wants_more(self) -> bool:
        """Whether the program need not wait."""
        return all(one.wants_more() for one in self.handouts)

    def finish(self) -> None:
        """Read what is there now, and close it: the program has ended."""
        for _ in range(LAST_READS):
            if not self.read():
                break
        self.close()

    def close(self) -> None:
        """Close the pipe, and tell the sinks that this was all."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
            for sink in self.sinks:
                sink.close()
