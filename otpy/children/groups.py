"""Process groups: what programs, and callables in processes of their own, have in common."""

from __future__ import annotations

import contextlib
import os
import signal
import socket

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""Send with this: not every program ignores SIGPIPE. Some systems lack it."""


def signal_group(group: int, number: int) -> None:
    """Send a signal to all of *group*; nothing, if nobody of ours is left in it."""
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def signal_name(returncode: int | None) -> str | None:
    """Return the name of the signal that a process died of, such as "SIGSEGV"; None: it was none."""
    if returncode is None or returncode >= 0:
        return None
    return next((one.name for one in signal.Signals if one == -returncode), f"signal {-returncode}")  # some have none


def is_strange(pid: int) -> bool:
    """Whether something else has reaped *pid*, and its number has been given to another process."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return exists(pid)
    return False


def exists(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
