"""What a callable in a process of its own says, as the program hears it.

Laws:
1. What comes is data. It is measured before it is kept, and looked at before it is
   used; whatever is wrong about it is a ``ProtocolError``.
2. Nothing of it is executed, and no module is imported because of it. Exceptions are
   made of plain values, by a reader, see plain.py. To unpickle them must be asked for:
   ``allow_pickle``.
3. A state is handed on as it came. This process never looks into it.

All of this is called by the thread of the child, but for ``SealedException.open``: that
runs on the thread of a reader. How the other side makes what is read here is in
remote.py.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

from otpy.children.callable.far_side import ALLOWED, BEAT, EXIT, HEAD, PARTS, STATE, UP
from otpy.exceptions import CONTROL, ProtocolError, Sealed

SIZES: dict[bytes, int | None] = {UP: 0, BEAT: ALLOWED.size, STATE: None, EXIT: None}
"""How many bytes a message has, by its kind; None: as many as the limit allows."""


class Messages:
    """Cuts what is heard into messages; it keeps at most one that is not complete.

    Args:
        limit: The most bytes that a message may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begun, self._needed = bytearray(), 0

    def cut(self, data: bytes | memoryview) -> Iterator[tuple[bytes, bytes]]:
        """Take *data*, and yield what is complete: kind and content.

        Raises:
            ProtocolError: A message is none, or too large; found out as soon as its
                head is there.
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
                raise ProtocolError(self._what_is_wrong(kind, size))
            begin, end = at + HEAD.size, at + HEAD.size + size
            if end > available:
                self._needed = end - at
                break
            yield kind, bytes(data[begin:end])
            at = end
        self._begun += data[at:]

    def _what_is_wrong(self, kind: bytes, size: int) -> str:
        if kind not in SIZES:
            return f"no message begins with {kind!r}"
        if SIZES[kind] is None:
            return f"a message of {size} bytes (max_message_size: {self._limit})"
        return f"a message {kind!r} of {size} bytes, which has {SIZES[kind]}"


def allowed(content: bytes) -> float:
    """Return what a check-in allows, in seconds.

    Raises:
        ProtocolError: It is no number of seconds.
    """
    (seconds,) = ALLOWED.unpack(content)
    if not 0 <= seconds < math.inf:
        raise ProtocolError(f"a check-in that allows {seconds} s")
    return float(seconds)


def raised_by(content: bytes, allow_pickle: bool) -> Sealed | None:
    """Return what the child has raised, by its EXIT; None: it has returned.

    Raises:
        ProtocolError: It is no EXIT.
    """
    if not content:
        return None
    if (
        len(content) < PARTS.size
        or sum(sizes := PARTS.unpack_from(content)) != len(content) - PARTS.size
    ):
        raise ProtocolError("an exit that cannot be read")
    parts, at = [], PARTS.size
    for size in sizes:
        parts.append(content[at : at + size])
        at += size
    word, name, shown, message, traceback = (part.decode(errors="replace") for part in parts[:-1])
    kind = next((one for one in CONTROL if one.__name__ == word), Exception)
    return SealedException(kind, (name, message, shown, traceback), parts[-1], allow_pickle)


class SealedException(Sealed):
    """What a callable has raised: the words, and the exception as it came."""

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
        from otpy.children.callable.plain import (
            exception_of,  # few programs need it, and few of those often
        )

        try:
            load = pickle.loads if self._allow_pickle else exception_of
            error: Any = load(self._packed)
        except (
            Exception,
            SystemExit,
        ):  # but not what a signal handler, or otpy, raises in the thread of the reader
            return None
        return error if issubclass(type(error), BaseException) else None
