"""What programs write: its end for the exit reason, log files, and lines.

Laws:
1. What is kept or queued is bounded, however much a program writes.
2. A file that cannot be written costs the output that does not fit, and nothing else. It
   is reported once, until it works again, and in the file itself where output is missing.

Threads: ``Tail`` and ``Stream`` belong to the watch (watch.py). The sinks ``Lines``,
``Scan`` and ``Journal`` belong to the thread of their lane (lanes.py).
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable

import attrs

from otpy.arguments import check_result
from otpy.children.program.lanes import Handout, Sink
from otpy.children.program.logfiles import LogFile
from otpy.children.program.patterns import Finder
from otpy.exceptions import show
from otpy.runtime import log
from otpy.values import running

CHUNK = 64 * 1024
"""How many bytes are read at once."""

TAIL = 64 * 1024
"""How many bytes of a program's stderr its exit reason holds."""

LONG = 64 * 1024
"""A line that is longer than so many characters is cut."""

LAST_READS = 32
"""How often a pipe is read after the end of its program, at most.

A process that is no descendant of the program may go on writing into the pipe."""


# What runs on the thread of a lane


class Lines:
    """Cuts bytes into lines of text, without the line's end.

    The text is UTF-8; bytes that are none are replaced.
    """

    def __init__(self, handler: Callable[[str], object]) -> None:
        self._handler = handler
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        # The parts of the line that has no end yet. They are put together once: to
        # append to a str would copy all of it each time.
        self._rest: list[str] = []
        self._length = 0

    def add(self, data: bytes) -> None:
        """Call the handler with each line that is complete now."""
        self._feed(self._decoder.decode(data))

    def close(self) -> None:
        """Call the handler with the last line, if that has no end."""
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
        """Add *part* to the line that has no end yet; cut what is too long."""
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
    """Calls a handler of the user's with each line. If it raises, that is logged."""

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
    """What one run of a program writes to a log file. It notes there what is missing.

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
        note = b""
        if self._lost:
            note = b"\n" * self.file.is_in_a_line
            note += b"--- otpy: %d bytes are missing here ---\n" % self._lost
        left = bytearray(note + data)
        try:
            self.file.write(left, self.size, self.backups)
            self._lost = 0
        except OSError as error:
            # or a file that was removed would never be made again
            self.file.close()
            if not self._lost:
                self.failed(error)
            self._lost += min(len(left), len(data))

    def close(self) -> None:
        """Note what is still missing. The lane of the file closes it."""
        if self._lost:
            self.add(b"")


# What runs on the watch's thread


class Tail:
    """A sink that keeps the last bytes."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Add *data*; forget what is too old."""
        self._data += data
        # not each time: to move the rest to the front costs a copy
        if len(self._data) > 2 * TAIL:
            del self._data[:-TAIL]

    def close(self) -> None:
        """Keep what was added."""

    def __bytes__(self) -> bytes:
        return bytes(self._data[-TAIL:])


@running
class Stream:
    """The pipe of one program, and where its output goes.

    Attributes:
        fd: Our end; None when it is closed.
        sinks: Where the output goes, in this order.
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
        """Read once, and hand it on.

        Returns:
            How many bytes; 0 at the end; None: the pipe is empty now.
        """
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
        """Close the pipe, and the sinks: nothing more comes."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
            for sink in self.sinks:
                sink.close()
