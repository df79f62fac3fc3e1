"""Files that this process appends to: the logs of programs, and the reports of ``otpy run``.

Laws:
1. Only the user of this process may read a file that is made here (mode 0600).
2. No link to a regular file is followed: another user who may write to the directory could
   have any file of ours written to. ``/dev/stdout``, ``/dev/stderr``, ``/dev/fd/N`` and
   ``/proc/self/fd/N`` mean descriptors of this process, also where a link leads to one of
   these names.
3. A file that others have moved or removed is made anew: by the first write LOOK_AGAIN
   seconds after the last look, and by the next write after ``reopen_logs``. No file is
   truncated, and a file that others have put in its place is not removed.
4. A FIFO without a reader is an error, and not waited for. A pipe that is full is waited for.

Who runs what: a ``LogFile`` belongs to one thread at a time, and all of its methods may block: see output.py for the
threads of programs. ``reopen_logs`` may be called on any thread, and by a signal handler.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import selectors
import stat
import time
from pathlib import Path

from otpy.runtime import posix

LOOK_AGAIN = 1.0
"""Seconds after which a file is looked for under its name again, before something is written to it."""

FLAGS = (
    os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
)  # not on Windows

ITSELF = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)

OURS = 0o600
"""The mode of a new file."""

STANDARD = {"stdin": 0, "stdout": 1, "stderr": 2}
DESCRIPTOR = re.compile(
    r"/dev/(?:(stdin|stdout|stderr)|fd/(\d{1,9}))|/proc/(?:self|thread-self)/fd/(\d{1,9})"
)

MOST_LINKS = 40
"""So many links are followed on the way to a descriptor, as the system does."""

_open: set[LogFile] = set()


class LogFile:
    """A file that is appended to; see the laws above. It is opened by the first write.

    Attributes:
        path: Which. Relative to the directory that is the current one when this is made.
        makes_directory: Whether its directory is made if it is missing.
        is_in_a_line: Whether the last that was written was not the end of a line.
        is_stale: Set to have it opened anew before the next write.
    """

    def __init__(self, path: str, *, makes_directory: bool = True) -> None:
        self.path, self.makes_directory = full(path), makes_directory
        self.is_in_a_line = self.is_stale = False
        self._fd: int | None = None
        self._is_regular = False
        self._used = 0
        self._next_look = 0.0

    def write(self, data: bytearray, size: int, backups: int) -> None:
        """Append *data*, and take out of it what has been written.

        If it is a regular file, it gets no larger than *size* bytes: then a new one is begun, at the end of a line
        where there is one. *backups* older ones are kept, the youngest as ``path.1``.

        Raises:
            OSError: The disk is full, the directory is missing, …: what is left in *data* has not been written.
        """
        self._look()
        while data:
            self.open()
            if (fits := self._fitting(data, size)) == 0:
                self._rotate(backups)
            else:
                self._append(data, fits)

    def open(self) -> None:
        """Open it, if it is not open.

        Raises:
            OSError: It cannot be opened.
        """
        if self._fd is not None:
            return
        number = _descriptor(self.path)
        fd = self._open_by_name() if number is None else posix.lifted(os.dup(number))
        status = os.fstat(fd)
        self._fd, self._used = fd, status.st_size
        self._is_regular = number is None and stat.S_ISREG(status.st_mode)
        self._next_look = time.monotonic() + LOOK_AGAIN
        _open.add(self)

    def close(self) -> None:
        """Close it; ``write`` opens it again."""
        _open.discard(self)
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _open_by_name(self) -> int:
        try:
            return self._open_itself()
        except FileNotFoundError:
            if not self.makes_directory:
                raise
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            return self._open_itself()

    def _open_itself(self) -> int:
        try:
            return posix.open_file(self.path, FLAGS | ITSELF, OURS)
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(
                    errno.ENXIO, "a FIFO that nothing reads, or a socket", self.path
                ) from None
            if not os.path.islink(self.path):  # noqa: PTH114  # the other one may raise
                raise
        fd = posix.open_file(self.path, FLAGS)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, "a link to a file, which is not followed", self.path)
        return fd

    def _look(self) -> None:
        """Close it if it is not there any more under its name, or is to be opened anew."""
        if self.is_stale:
            self.is_stale = False  # first: it may be set again meanwhile
            self.close()
        if self._fd is not None and self._is_regular and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_AGAIN
            self._look_now()

    def _look_now(self) -> None:
        assert self._fd is not None, "it was opened"
        ours = os.fstat(self._fd)
        self._used = ours.st_size  # another process may write to it, or have emptied it
        try:
            is_ours = os.path.samestat(ours, Path(self.path).lstat())
        except (FileNotFoundError, NotADirectoryError):
            is_ours = False
        except OSError:
            return  # it cannot be looked for, say by a process that has given up rights; it can be written to
        if not is_ours:
            self.close()

    def _fitting(self, data: bytearray, size: int) -> int:
        """Return how many bytes of *data* go into the file as it is; 0: it is full."""
        room = max(0, size - self._used)
        if len(data) <= room or not self._is_regular:
            return len(data)
        end = data.rfind(b"\n", 0, room) + 1
        return end or (0 if self._used else size)  # a line that is longer than a file is cut

    def _append(self, data: bytearray, count: int) -> None:
        assert self._fd is not None, "it was opened"
        while count:
            try:
                with memoryview(data) as whole, whole[:count] as part:
                    written = os.write(self._fd, part)
            except BlockingIOError:
                _wait_for_room(self._fd)
                continue
            self.is_in_a_line = data[written - 1] != ord("\n")
            self._used += written
            count -= written
            del data[:written]

    def _rotate(self, backups: int) -> None:
        """Make room under the name, for a file that is opened next."""
        self._look_now()
        if self._fd is None:
            return  # others have moved it: what is there now is not ours to move
        self.close()
        names = [self.path]
        while len(names) <= backups and os.path.lexists(names[-1]):
            names.append(f"{self.path}.{len(names)}")
        for younger, older in reversed([*itertools.pairwise(names)]):
            with contextlib.suppress(FileNotFoundError):
                Path(younger).replace(older)
        if not backups:
            Path(self.path).unlink(missing_ok=True)


def reopen_logs() -> None:
    """Have every log file of this process opened anew by its name before something more is written to it.

    For whatever has moved them, such as logrotate in its ``postrotate``. Without this it takes up to a second, in which
    output still goes into the file that was moved. ``otpy run`` calls it at SIGUSR2.

    Never blocks; may be called on any thread, and by a signal handler.
    """
    for file in tuple(_open):
        file.is_stale = True


def full(path: str) -> str:
    """Return the one name that *path* has here: its full path, as far as there is a current directory.

    Links are not followed, as that may block; so a file may have other names. A ``..`` stays: before it may be a link.
    """
    if found := DESCRIPTOR.fullmatch(path):
        return f"/dev/fd/{_number(found)}"
    try:
        return str(Path(path) if path.startswith("/") else Path(Path.cwd(), path))
    except OSError:  # the current directory has been removed
        return path


def _descriptor(path: str) -> int | None:
    """Return the descriptor of this process that *path* is a name of, by itself or by links; None: it is none."""
    for _ in range(MOST_LINKS):
        if found := DESCRIPTOR.fullmatch(path):
            return _number(found)
        try:
            path = os.path.normpath(os.path.join(os.path.dirname(path), os.readlink(path)))  # noqa: PTH115, PTH118, PTH120
        except OSError:
            return None
    return None


def _number(found: re.Match[str]) -> int:
    name, *numbers = found.groups()
    return STANDARD[name] if name else int(next(filter(None, numbers)))


def _wait_for_room(fd: int) -> None:
    """Wait until something can be written to *fd*, or an error can be found by trying."""
    with posix.selector() as selector:
        selector.register(fd, selectors.EVENT_WRITE)
        selector.select()
