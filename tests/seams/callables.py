"""Callables that tests of the wire run in processes.

Some are honest, and some want to harm the parent process.
"""

import contextlib
import ctypes
import enum
import os
import socket
import stat
import struct
import threading

from otpy import Fatal

CALLS = []
"""The calls of code of the classes below: which, and on which thread of this process."""


def note(what):
    CALLS.append((what, threading.current_thread().name))


class Colour(enum.Enum):
    RED = 1


class Plain(Exception):
    """Has attributes, and a constructor whose parameters are not its args."""

    def __init__(self, one, two):
        note("init")
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


class Slotted(Exception):
    __slots__ = ("place",)


class Watchful(Exception):
    """Notes each call of its code."""

    def __new__(cls, *args):
        note("new")
        return super().__new__(cls, *args)

    def __init__(self, *args):
        note("init")
        super().__init__(*args)
        self.__dict__["watched"] = 1

    def __setattr__(self, name, value):
        note("setattr")
        super().__setattr__(name, value)

    def __setstate__(self, state):
        note("setstate")

    @property
    def watched(self):
        note("property")

    @watched.setter
    def watched(self, value):
        note("setter")

    def __reduce__(self):
        note("reduce")
        return Watchful, self.args


class Hashed(Exception):
    """Notes when it is hashed or compared."""

    def __hash__(self):
        note("hash")
        return 1

    def __eq__(self, other):
        note("eq")
        return True


class Number(enum.IntEnum):
    """Notes when it is converted or multiplied."""

    ONE = 1

    def __float__(self):
        note("float")
        return 1.0

    def __mul__(self, other):
        note("mul")
        return 1

    __rmul__ = __mul__


class Burning(Fatal):
    """A Fatal of a class of its own."""


def make(word):
    note("make")
    return ValueError(word)


class Made(Exception):
    """Is unpickled by a call of ``make``."""

    def __reduce__(self):
        return make, ("made",)


class Deadly(Exception):
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (77,)


def raise_it(ctx, name, *args):
    raise globals()[name](*args)


class Odd:
    """An exit code that cannot be compared, as arrays cannot."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError("the truth value of an array is ambiguous")

    def __repr__(self):
        return "Odd()"


def leave_oddly(ctx):
    raise SystemExit(Odd())


def leave_a_flood(ctx, kind, content):
    """Leave a process that holds the wire and sends these messages for ever; then end.

    C code makes the fork: Python would close the wire.
    """
    if ctypes.PyDLL(None).fork() == 0:
        while True:
            for descriptor in sockets():
                os.write(descriptor, (struct.pack("!cQ", kind, len(content)) + content) * 1000)
    raise SystemExit(3)


def sockets():
    """Yield the descriptors of all sockets of this process."""
    for descriptor in range(3, 100):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                yield descriptor


def send_raw(ctx, kind, size):
    """Write the head of a message to each socket of this process; wait to be killed."""
    for descriptor in sockets():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as end:
            end.sendall(struct.pack("!cQ", kind, size))
    ctx.wait_stop()
