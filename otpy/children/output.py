"""What programs write: the last of it for the exit reason, log files with a size cap, lines for callables.

Laws:
1. What is kept or queued is bounded, however much a program writes.
2. A file that cannot be written costs the output that does not fit, and nothing else. It is told once, and in the file
   itself where output is missing.
3. Code of the user's, and streams that may block, are waited for on a thread of their own. Who is too slow there holds
   up the program that writes, as any pipe does; nobody else.

Who runs what: ``Tail``, ``Log``, ``Scan`` and all of ``Stream`` run on the thread that waits for the programs, see
watch.py. A ``Handout`` runs its sink on its own thread.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import queue
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import attrs

from otpy import telemetry, threads
from otpy.exceptions import show
from otpy.threads import Role

CHUNK = 64 * 1024
TAIL = 64 * 1024
"""How many bytes of a program's stderr its exit reason holds."""

BACKLOG = 1024 * 1024
"""How many bytes may wait for a sink with a thread of its own before the program has to."""

LONG = 64 * 1024
"""A line that is longer than so many characters is cut."""

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

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


@attrs.define(eq=False)
class Log:
    """A file that is appended to: no larger than *size* bytes, with *backups* older ones, ``file.1`` the youngest.

    It is opened anew by each run of a program, and its directory is made if it is missing. Something in its place that
    is no file is written to, but never waited for, and not rotated: /dev/null must stay where it is.
    """

    file: str
    size: int
    backups: int
    _fd: int | None = None
    _is_file: bool = True
    _used: int = 0

    def write(self, data: bytes) -> None:
        """Append *data*, cut at the end of a line where a new file has to begin.

        Raises:
            OSError: The disk is full, the directory is missing, …: some of *data* may be lost.
        """
        if self._fd is None:
            self._open()
        while data:
            piece = self._next(data)
            self._append(piece)
            data = data[len(piece) :]

    def close(self) -> None:
        """Close the file; ``write`` opens it again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open(self) -> None:
        try:
            self._fd = os.open(self.file, FLAGS, 0o644)
        except FileNotFoundError:
            Path(self.file).parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(self.file, FLAGS, 0o644)
        status = os.fstat(self._fd)
        self._is_file, self._used = stat.S_ISREG(status.st_mode), status.st_size

    def _next(self, data: bytes) -> bytes:
        """Return what of *data* fits into the file, after having made room if nothing does."""
        room = self.size - self._used
        if len(data) <= room or not self._is_file:
            return data
        end = data.rfind(b"\n", 0, max(0, room)) + 1
        if end:
            return data[:end]
        if self._used:
            self._rotate()
            return self._next(data)
        return data[:room]

    def _append(self, data: bytes) -> None:
        assert self._fd is not None, "it was opened"
        while data:
            written = os.write(self._fd, data)
            self._used += written
            data = data[written:]

    def _rotate(self) -> None:
        self.close()
        for number in range(self.backups, 0, -1):
            younger = f"{self.file}.{number - 1}" if number > 1 else self.file
            with contextlib.suppress(FileNotFoundError):
                Path(younger).replace(f"{self.file}.{number}")
        if not self.backups:
            os.truncate(self.file, 0)
        self._open()


@attrs.define(eq=False)
class Journal:
    """A log that tells when it cannot be written, once, and notes in the file what is missing.

    Attributes:
        failed: Called with the error when writing fails after it has worked.
    """

    log: Log
    failed: Callable[[OSError], object]
    _lost: int = 0

    def add(self, data: bytes) -> None:
        """Append *data*, or count it as lost."""
        note = b"--- otpy: %d bytes are missing here ---\n" % self._lost if self._lost else b""
        try:
            self.log.write(note + data)
            self._lost = 0
        except OSError as error:
            self._give_up(error, len(data))

    def close(self) -> None:
        """Close the file."""
        self.log.close()

    def _give_up(self, error: OSError, lost: int) -> None:
        self.log.close()  # or a file that was removed would never be made again
        if not self._lost:
            self.failed(error)
        self._lost += lost


class Lines:
    """Cuts a stream of bytes into lines of text: UTF-8, what is none replaced; without the line's end."""

    def __init__(self, handler: Callable[[str], object]) -> None:
        self._handler = handler
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def add(self, data: bytes) -> None:
        """Call the handler with each line that is complete now."""
        self._feed(self._decoder.decode(data))

    def close(self) -> None:
        """Call the handler with what is left without an end."""
        self._feed(self._decoder.decode(b"", final=True))
        rest, self._rest = self._rest, ""
        if rest:
            self._handler(rest)

    def _feed(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LONG:
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            self._handler(line.removesuffix("\r"))


class Scan:
    """Looks for a line until it has been there."""

    def __init__(self, pattern: str, found: Callable[[], object]) -> None:
        self._pattern, self._found = re.compile(pattern), found
        self._lines: Lines | None = Lines(self._look)

    def add(self, data: bytes) -> None:
        """Look at *data*."""
        if self._lines is not None:
            self._lines.add(data)

    def close(self) -> None:
        """Look at a last line without an end."""
        if self._lines is not None:
            self._lines.close()

    def _look(self, line: str) -> None:
        if self._lines is not None and self._pattern.search(line):
            self._lines = None
            self._found()


class Sink(Protocol):
    """Where output goes."""

    def add(self, data: bytes) -> object:
        """Take *data*."""

    def close(self) -> object:
        """That was all."""


@attrs.frozen(eq=False)
class Through:
    """Hands output on to a stream of this process, such as its own stderr. May block."""

    fd: int

    def add(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.fd, data) :]

    def close(self) -> None:
        """Leave the stream open: it is not ours."""


@attrs.frozen(eq=False)
class Called:
    """Calls a handler of the user's; what it raises is logged, and the next line comes all the same."""

    handler: Callable[[str], object]
    path: str

    def __call__(self, line: str) -> None:
        try:
            self.handler(line)
        except BaseException as error:
            telemetry.complain("output_handler_failed", error, handler=show(self.handler), path=self.path)


class Handout:
    """A thread that feeds a sink which may be slow.

    ``wants_more`` says whether the reader may go on. If not, *resume* is called when it may, on this thread. The race
    is between a reader that has seen too much and a sink that empties the queue just then: the reader says that it
    waits and looks again, the sink takes something out and looks whether anybody waits. One of them sees the other.

    Attributes:
        thread: The thread.
    """

    def __init__(self, sink: Sink, resume: Callable[[], object], *, name: str, owner: object) -> None:
        self._sink, self._resume = sink, resume
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._put = self._done = 0  # the one is written by the reader only, the other by the thread
        self._is_awaited = False
        self.thread = threads.spawn(self._run, name=name, role=Role.HELPER, purpose="hands output on", owner=owner)

    def add(self, data: bytes) -> None:
        """Queue *data*."""
        self._put += len(data)
        self._queue.put(data)

    def close(self) -> None:
        """End the thread when the sink has got all that is queued."""
        self._queue.put(None)

    def wants_more(self) -> bool:
        """Whether there is room."""
        self._is_awaited = self._is_full()
        return not self._is_awaited or not self._is_full()

    def _is_full(self) -> bool:
        return self._put - self._done > BACKLOG

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._give(self._sink.add, data)
            self._done += len(data)
            if self._is_awaited and not self._is_full():
                self._is_awaited = False
                self._resume()
        self._give(self._sink.close)

    def _give(self, method: Callable[..., object], *data: bytes) -> None:
        try:
            method(*data)
        except OSError as error:  # the stream of this process is gone
            telemetry.complain("output_lost", error)


@attrs.define(eq=False)
class Stream:
    """The pipe of one program, and where its output goes.

    Attributes:
        fd: Our end; None when it is closed.
        sinks: What gets the output at once.
        handouts: What gets it on threads of their own; they are some of the sinks.
    """

    fd: int | None
    sinks: list[Sink]
    handouts: list[Handout]

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
