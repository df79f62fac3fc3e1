"""The lock that guards who comes into a registry, and which hook reports crashes.

All registries share it. It is held for a few lines: no thread is started while it is
held, no caller waits and no user code runs. The thread that holds it may take it again,
since a signal handler in that thread may call ``shutdown_all``.
"""

from __future__ import annotations

import os
import threading

from otpy.runtime.waiting import Door


def _renew() -> None:
    """Replace the lock in a forked process.

    Another thread may have held it at the fork. That thread does not exist in the fork,
    and would never give it back.
    """
    global _door  # noqa: PLW0603
    _door = Door(threading.RLock())


_door = Door(threading.RLock())

# Windows does not fork, and has no such function
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def door() -> Door:
    """Return the lock, for ``with``."""
    return _door
