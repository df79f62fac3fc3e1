"""Files that this process appends to: logs of programs, reports of ``otpy run``.

Laws:
1. Only the user of this process may read a file that is made here (mode 0600).
2. No link to a regular file is followed: another user who may write to the directory could
   have any file of ours written to. ``/dev/stdout``, ``/dev/stderr``, ``/dev/fd/N`` and
   ``/proc/self/fd/N`` mean descriptors of this process, also where a link leads to one of
   these names.
3. A file that other processes have moved or removed is made anew: by the first write
   LOOK_AGAIN seconds after the last look, and by the next write after ``reopen_logs``. No
   file is truncated, and a file that others have put in its place is not removed.
4. A FIFO without a reader is an error, and not waited for. A pipe that is full is waited
   for.

Threads: a ``LogFile`` belongs to one thread at a time, and all of its methods may
block; for programs that is the thread of a lane (lanes.py). ``reopen_logs`` may be called
on any thread, and by a signal handler.
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
"""Seconds between looks for a file under its name, each before a write."""

# Windows lacks some of these names
FLAGS = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)

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
"""The files that are open; ``reopen_logs`` takes a copy of it, in one step."""


class LogFile:
    """A file that is appended to; see the laws above. It is opened by the first write.

    Attributes:
        path: Its full path.
        makes_directory: Whether its directory is made if it is missing.
        is_in_a_line: Whether the last byte that was written was not the end of a line.
        is_stale: Whether it is opened anew before the next write; any thread may set it.
    """

    def __init__(self, path: str, *, makes_directory: bool = True) -> None:
        """Make one.

        Args:
            path: May be relative to the directory that is the current one now.
            makes_directory: See the attribute.
        """
        self.path, self.makes_directory = full(path), makes_directory
        self.is_in_a_line = self.is_stale = False
        self._fd: int | None = None
        self._is_regular = False
        self._used = 0
        self._next_look = 0.0

    def write(self, data: bytearray, size: int, backups: int) -> None:
        """Append *data*, and take out of it what has been written.

        Args:
            data: What is left in it after an error has not been written.
            size: The most bytes of a regular file. Then a new one is begun, at the end of
                a line if possible.
            backups: How many older ones are kept, the youngest as ``path.1``.

        Raises:
            OSError: The disk is full, the directory is missing, ….
        """
        if self.is_stale:
            # before it is closed: another thread may set it again meanwhile
            self.is_stale = False
            self.close()
        if self._fd is not None and self._is_regular and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_AGAIN
            self._look()
        while data:
            self.open()
            if (fits := self._fitting(data, size)) == 0:
                self._rotate(backups)
            else:
                self._append(data, fits)

    def open(self) -> None:
        """Open it; nothing, if it is open.

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
            # Path.is_symlink may raise
            if not os.path.islink(self.path):  # noqa: PTH114
                raise
        fd = posix.open_file(self.path, FLAGS)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(errno.ELOOP, "a link to a file, which is not followed", self.path)
        return fd

    def _look(self) -> None:
        """Close it if another file, or none, has its name by now."""
        assert self._fd is not None, "it was opened"
        ours = os.fstat(self._fd)
        # another process may write to it, or have emptied it
        self._used = ours.st_size
        try:
            is_ours = os.path.samestat(ours, Path(self.path).lstat())
        except (FileNotFoundError, NotADirectoryError):
            is_ours = False
        except OSError:
            # This process may have given up the right to look. It can still write.
            return
        if not is_ours:
            self.close()

    def _fitting(self, data: bytearray, size: int) -> int:
        """Return how many bytes of *data* go into the file as it is; 0: it is full."""
        room = max(0, size - self._used)
        if len(data) <= room or not self._is_regular:
            return len(data)
        end = data.rfind(b"\n", 0, room) + 1
        # a line that is longer than a file is cut
        return end or (0 if self._used else size)

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
        """Give the file that is full another name; a new one is opened next."""
        self._look()
        if self._fd is None:
            # another process has moved it, and the file that is there now is not ours
            return
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
    """Have every log file of this process opened anew before its next write.

    Call it after you have moved log files, for example when logrotate runs its
    ``postrotate``. Without this call, output may still go into a file that was moved for up
    to a second. ``otpy run`` calls it at SIGUSR2.

    Never blocks; may be called on any thread, and by a signal handler.
    """
    # Other threads open and close files meanwhile. To copy a set is one step; a file
    # that is opened after that is new anyway.
    for file in tuple(_open):
        file.is_stale = True


def full(path: str) -> str:
    """Return the one name that *path* has here: its full path.

    Links are not followed, as that may block; so a file may have other names. A ``..``
    stays: the part before it may be a link. If the current directory has been removed, a
    relative path stays as it is.
    """
    if found := DESCRIPTOR.fullmatch(path):
        return f"/dev/fd/{_number(found)}"
    try:
        return str(Path(path) if path.startswith("/") else Path(Path.cwd(), path))
    except OSError:
        # the current directory has been removed
        return path


def _descriptor(path: str) -> int | None:
    """Return the descriptor of this process that *path* names, by itself or by links.

    None: it names another file.
    """
    for _ in range(MOST_LINKS):
        if found := DESCRIPTOR.fullmatch(path):
            return _number(found)
        try:
            target = os.path.join(os.path.dirname(path), os.readlink(path))  # noqa: PTH115, PTH118, PTH120
            path = os.path.normpath(target)
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
