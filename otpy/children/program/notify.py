"""The sockets to which programs send ``READY=1`` and ``WATCHDOG=1``, as to systemd.

Laws:
1. A socket belongs to one program. A message from a process that does not descend from it
   is dropped; and so is a message from another user, if the sender has ended before it
   could be looked at.
2. Sockets lie in a directory that only this user may enter. A directory of root's may be
   entered by all users, as programs of root may become other users. But no other user may
   list it, and the names are chosen by chance.

Where the system does not say which process has sent a message (not Linux), only law 2
protects a socket.

Threads: launchers open mailboxes; ``Mailroom.open`` takes a lock. A mailbox belongs to
the watch when its program has been started.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otpy.children.program.guard import Guard
from otpy.runtime import posix
from otpy.runtime.descendants import Family
from otpy.runtime.posix import Socket

LETTERS = 1000
"""How many messages are read in a row.

More than can wait at the end of a program; few enough that a flood of them does not hold
up the other programs."""

LONGEST = 100
"""The most bytes of an address: some systems allow 103."""

WHO = struct.Struct("3i")
"""The credentials of a sender (Linux): process, user, group."""


class Mailroom:
    """The sockets of one tree; ``tree.shared(Mailroom)``.

    Attributes:
        directory: Where they are; "" before the first.
        is_closed: Whether the tree has ended.
    """

    def __init__(self, tree: Any) -> None:
        self.directory, self.is_closed = "", False
        self._lock = threading.Lock()

    def open(self, guard: Guard) -> Mailbox:
        """Make a socket; called by launchers.

        Raises:
            OSError: No descriptor is left, or no directory can hold the socket.
        """
        with self._lock:
            # some systems remove what is old in such places
            if not Path(self.directory).is_dir() or not self.directory:
                self.directory = _make_directory()
                guard.add_litter(self.directory)
            return Mailbox(f"{self.directory}/{secrets.token_hex(8)}", self)

    def close(self) -> None:
        """Remove the directory if it is empty.

        Programs that were detached have their sockets in it; the last of them removes it.
        """
        self.is_closed = True
        with contextlib.suppress(OSError):
            Path(self.directory or "?").rmdir()


def _make_directory() -> str:
    """Make a directory whose path is short enough."""
    # the name of the directory is chosen by chance, and only this user may enter it
    places = [tempfile.gettempdir(), "/tmp", "/var/tmp"]  # noqa: S108
    error: OSError | None = None
    for place in places:
        try:
            # absolute: a program may run in another directory
            full = str(Path(place).absolute())
            if len(os.fsencode(full)) + 32 > LONGEST:
                continue
            made = tempfile.mkdtemp(prefix="otpy-", dir=full)
        except OSError as refused:
            error = refused
            continue
        if os.geteuid() == 0:
            os.chmod(made, 0o711)  # noqa: S103, PTH101 - see law 2
        return made
    raise error or OSError(f"no place for a socket: the path {places[0]} is too long")


class Mailbox:
    """The socket of one program.

    Attributes:
        address: The value of ``NOTIFY_SOCKET``.
    """

    def __init__(self, address: str, room: Mailroom) -> None:
        self.address, self._room = address, room
        self._socket: Socket = posix.datagram_socket()
        try:
            self._socket.setblocking(False)
            self._knows_senders = hasattr(socket, "SO_PASSCRED")
            if self._knows_senders:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind(address)
            if os.geteuid() == 0:
                os.chmod(address, 0o666)  # noqa: S103, PTH101 - see law 2
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return its descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close and remove it."""
        self._socket.close()
        with contextlib.suppress(OSError):
            Path(self.address).unlink()
        if self._room.is_closed:
            self._room.close()

    def letters(self, family: Family) -> Iterator[bytes]:
        """Yield the messages of *family* that are there now."""
        for _ in range(LETTERS):
            try:
                text, extra, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(WHO.size))
            except OSError:
                # that was all, or the socket is closed
                return
            if not self._knows_senders or _is_from(family, extra):
                yield text


def _is_from(family: Family, extra: list[Any]) -> bool:
    """Whether the sender descends from the leader, or has ended and was of this user."""
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, user, _ = WHO.unpack(data[: WHO.size])
            descends = family.has(pid)
            return user in (os.geteuid(), 0) if descends is None else descends
    return False
