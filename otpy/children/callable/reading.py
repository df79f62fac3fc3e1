"""The messages of a callable, as the parent process reads them.

Laws:
1. A message is data. It is measured before it is kept, and checked before it is used;
   every fault of it is a ``ProtocolError``.
2. No part of a message is executed, and no module is imported because of it. A reader
   makes exceptions of plain values (plain.py). Only the option ``allow_pickle`` lets a
   reader unpickle them.
3. A state is handed on as it came. The parent process never unpickles it.

All of this runs on the keeper's thread, except ``SealedException.open``: that runs on
the thread of a reader. How the process makes a message is in far_side.py and
epitaph.py.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

from otpy.children.callable.protocol import ALLOWED, BEAT, EXIT, HEAD, PARTS, STATE, UP
from otpy.exceptions import CONTROL, ProtocolError, Sealed

SIZES: dict[bytes, int | None] = {UP: 0, BEAT: ALLOWED.size, STATE: None, EXIT: None}
"""How many bytes a message of each kind has; None: as many as the limit allows."""


class Messages:
    """Cuts the bytes that come into messages; keeps at most one that is not complete.

    Args:
        limit: The most bytes that a message may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun, self._needed = bytearray(), 0

    def cut(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
        """Take *data*, and yield the messages that are complete: kind and content.

        Raises:
            ProtocolError: The kind or the size of a message is wrong. Its head is
                enough to find that out.
        """
        if self._begun:
            self._begun += data
            if len(self._begun) < self._needed:
                return
            data, self._begun = memoryview(self._begun), bytearray()
        at, self._needed, available = 0, HEAD.size, len(data)
        while available - at >= HEAD.size:
            kind, size = HEAD.unpack_from(data, at)
            right = SIZES.get(kind, -1)
            if right != size and (right is not None or size > self._limit):
                raise ProtocolError(self._fault(kind, size))
            begin, end = at + HEAD.size, at + HEAD.size + size
            if end > available:
                self._needed = end - at
                break
            yield kind, bytes(data[begin:end])
            at = end
        self._begun += data[at:]

    def _fault(self, kind: bytes, size: int) -> str:
        if kind not in SIZES:
            return f"no message begins with {kind!r}"
        if SIZES[kind] is None:
            return f"a message of {size} bytes (max_message_size: {self._limit})"
        return f"a message {kind!r} of {size} bytes, which has {SIZES[kind]}"


def allowed(content: bytes) -> float:
    """Return how long the next check-in may take, in seconds, by the content of a BEAT.

    Raises:
        ProtocolError: The content is no number of seconds.
    """
    (seconds,) = ALLOWED.unpack(content)
    if not 0 <= seconds < math.inf:
        raise ProtocolError(f"a check-in that allows {seconds} s")
    return float(seconds)


def raised_by(content: bytes, allow_pickle: bool) -> Sealed | None:
    """Return the exception in the content of an EXIT; None: the child has returned.

    Raises:
        ProtocolError: The content is not that of an EXIT.
    """
    if not content:
        return None
    sizes = PARTS.unpack_from(content) if len(content) >= PARTS.size else ()
    if not sizes or sum(sizes) != len(content) - PARTS.size:
        raise ProtocolError("an exit that cannot be read")
    parts, at = [], PARTS.size
    for size in sizes:
        parts.append(content[at : at + size])
        at += size
    word, name, shown, message, traceback = (part.decode(errors="replace") for part in parts[:-1])
    kind = next((one for one in CONTROL if one.__name__ == word), Exception)
    return SealedException(kind, (name, message, shown, traceback), parts[-1], allow_pickle)


class SealedException(Sealed):
    """The exception of a callable: its texts, and the exception as it came."""

    __slots__ = ("_allow_pickle", "_packed")

    def __init__(
        self,
        kind: type[BaseException],
        texts: tuple[str, str, str, str],
        packed: bytes,
        allow_pickle: bool,
    ) -> None:
        super().__init__(kind, *texts)
        self._packed, self._allow_pickle = packed, allow_pickle

    def __reduce__(self) -> tuple[Any, ...]:
        texts = self.type_name, self.message, self.shown, self.traceback
        return SealedException, (self.kind, texts, self._packed, self._allow_pickle)

    def _rebuilt(self) -> BaseException | None:
        if not self._packed:
            return None
        # imported here: few users open an exception, and few of them often
        from otpy.children.callable.plain import exception_of

        try:
            load = pickle.loads if self._allow_pickle else exception_of
            error: Any = load(self._packed)
        # A signal handler, or otpy, may raise other exceptions in the reader's thread:
        # these are not about this exception, so they go on.
        except (Exception, SystemExit):
            return None
        return error if issubclass(type(error), BaseException) else None
