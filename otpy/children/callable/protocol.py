"""The words that a callable in a process of its own and its parent process exchange.

Both sides import this file, and the callable's interpreter loads it by its path. So it
imports nothing of otpy, and nothing that is slow.

The parcel goes to the process through its stdin: ``SIZES``, then two pickles. The pipe
stays open after that, and empty: it is the lifeline. Orders go through a socket, one
byte each. Messages come back through the same socket: a ``HEAD``, then as many bytes
as it says. A message is plain data, since the parent process must not believe the
child. Only a state is pickled, and only another process of the same child unpickles it.
"""

from __future__ import annotations

import struct

ASK, FENCE, LOOK = b"a", b"f", b"l"
"""Orders: stop; your messages count no more; write the stacks of all threads."""

UP, BEAT, STATE, EXIT = b"u", b"b", b"s", b"x"
"""Messages: it is up; it has checked in; it has saved a state; how it has ended."""

HEAD = struct.Struct("!cQ")
"""The head of a message: its kind, and how many bytes follow."""

SIZES = struct.Struct("!QQ")
"""The head of a parcel: how long its two parts are."""

ALLOWED = struct.Struct("!d")
"""How long the next check-in may take, in seconds; 0: as the heartbeat says."""

BEATS = 8
"""How many plain check-ins are sent per heartbeat, at most.

A tight loop of check-ins must not keep the parent process busy.
"""

PARTS = struct.Struct("!6Q")
"""The head of an EXIT that reports an exception: how long its six parts are.

The parts are five texts in UTF-8, and bytes: the control exception of otpy that it
means, or ""; the name of its class; its ``repr``; its ``str``; its traceback; the
exception itself, as JSON or pickled (``allow_pickle``), or b"". An EXIT without any
parts: the callable has returned.
"""

SHORT = 1000
"""The most bytes that a name, or a ``repr``, may have in an EXIT."""

LEAST = PARTS.size + 4 * SHORT
"""The smallest ``max_message_size``, in bytes: an EXIT in its short form must fit."""

LARGEST, MOST = 1 << 18, 10_000
"""The most bytes that an exception may have as JSON, and the most values in it.

An exception with more is reported by its texts alone.
"""

HEAP_TYPE = 1 << 9
"""The flag of classes that were made by a class statement.

The first class without it, among the bases of an exception, is the builtin it extends.
"""
