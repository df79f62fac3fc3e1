"""Whether a debugger is attached to this process.

A supervisor's thread looks for one, but only when a child is silent. So the look costs
nothing otherwise. It imports nothing. A debugger is recognised by one of these:

- It has registered as DEBUGGER_ID with ``sys.monitoring`` (Python 3.12 and later).
- It is pydevd, as in PyCharm; or debugpy, as in VS Code, and a client is connected.
- It is built on ``bdb``, as pdb, ipdb and pudb are: its trace function is set, in any
  thread, or a thread runs code of ``bdb`` right now.

Coverage tools and profilers trace as well, and are none of these. A debugger outside of
the interpreter, such as gdb, is not seen. Neither is one in a child's process.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

from otpy.runtime import stacks


def is_attached() -> bool:
    """Whether a debugger is attached. Never raises."""
    try:
        return _is_monitored() or _has_pydevd() or _is_traced()
    except Exception:  # of the debugger's own code, which is asked
        return False


def _is_monitored() -> bool:
    monitoring = getattr(sys, "monitoring", None)
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) not in (
        None,
        "pydevd",
    )


def _has_pydevd() -> bool:
    """Whether pydevd is at work.

    Its registration says nothing: it registers when debugpy begins to listen for a
    client.
    """
    debugpy: Any = sys.modules.get("debugpy")
    if debugpy is not None:
        return bool(debugpy.is_client_connected())
    constants: Any = sys.modules.get("_pydevd_bundle.pydevd_constants")
    return constants is not None and constants.get_global_debugger() is not None


def _is_traced() -> bool:
    bdb: Any = sys.modules.get("bdb")
    if bdb is None:
        return False
    if any(
        isinstance(getattr(trace, "__self__", None), bdb.Bdb)
        for trace in (sys.gettrace(), threading.gettrace())
    ):
        return True
    return any(_is_in(bdb, frame) for frame in stacks.frames().values())


def _is_in(bdb: Any, frame: FrameType | None) -> bool:
    """Whether *frame* or a frame below it is traced by ``bdb``, or runs its code."""
    while frame is not None:
        if isinstance(getattr(frame.f_trace, "__self__", None), bdb.Bdb) or frame.f_globals is vars(
            bdb
        ):
            return True
        frame = frame.f_back
    return False
