"""The account of all threads: see them, spawn further ones, stop them all.

The functions of this package are the methods of the default registry. That one sees the
threads of all trees, and all that were spawned through these functions. A
``ThreadRegistry`` of your own sees only the threads that it has spawned itself.
"""

from __future__ import annotations

from otpy.registry.crashes import CrashBridge
from otpy.registry.registry import DefaultRegistry, ThreadRegistry
from otpy.registry.shutdown import ShutdownStats
from otpy.registry.table import TrackedThread
from otpy.runtime.threads import ThreadState

__all__ = [
    "CrashBridge",
    "ShutdownStats",
    "ThreadRegistry",
    "ThreadState",
    "TrackedThread",
    "active",
    "default",
    "dump_status",
    "report_crashes_elsewhere",
    "shutdown_all",
    "shutdown_requested",
    "spawn",
    "subscribe",
    "unregister",
    "unsubscribe",
    "wait_shutdown",
]

_default = DefaultRegistry()

spawn = _default.spawn
active = _default.active
unregister = _default.unregister
wait_shutdown = _default.wait_shutdown
shutdown_all = _default.shutdown_all
dump_status = _default.dump_status
subscribe = _default.subscribe
unsubscribe = _default.unsubscribe


def default() -> ThreadRegistry:
    """Return the default registry, whose methods are the functions of this package."""
    return _default


def shutdown_requested() -> bool:
    """Return whether ``shutdown_all`` of the default registry has been called."""
    return _default.shutdown_requested


def report_crashes_elsewhere() -> CrashBridge:
    """Report crashes of threads that otpy has not started, from now on.

    They go to the log and to the sinks of the default registry. Sets
    ``threading.excepthook``. The hook that was there before is called after the report,
    unless it is the one of the interpreter, which would print the traceback once more.

    Returns:
        The hook: ``close()`` it, or use it as a context manager.
    """
    return CrashBridge(_default._report_crash)
