"""The end of the interpreter: trees are stopped while the children's tools work.

When the main thread has ended, Python does four things:
1. It calls what was registered with ``threading._register_atexit``, newest first.
   Executors refuse work from then on, and join their threads.
2. It joins all threads that are no daemons.
3. It calls what was registered with ``atexit``, newest first. multiprocessing joins and
   ends its processes, logging is shut down, the parent process closes what is its own.
4. It cuts off daemon threads, and takes the modules apart.
From 3 on no thread can be started; in Python 3.12.0 to 3.12.2, from 1 on.

Laws:
1. Trees are stopped before 1, whatever the order of imports and registrations.
2. Threads that are no daemons keep trees alive, as they keep the process alive. The
   threads of executors do not: they rest only when the children that use them have
   ended.
3. The handlers of a tree then have the rest of their ``flush`` seconds. Reports that
   were not handled by then are counted, and logged in one line. Complaints that were
   only counted are logged likewise.
4. No wait is without a limit. A supervisor that does not answer is named and left.
   Ctrl-C shortens all limits to zero.
5. A thread that is left, blocked in stdin, stdout or stderr, aborts no interpreter.

Theory of operation. ``threading._shutdown`` does 1 and 2, and is wrapped here. A
callback that is registered for 1 would come too late: a child may import an executor at
any time, and the executor's callback is newer then. There are two cases.

- Executors alone keep the process alive, or no thread does. The main thread stops the
  trees. Then 1 to 4 follow.
- Other threads go on. They may wait for the end of the main thread, so the main thread
  must not wait for them here. A thread that is no daemon is started, the *steward*. The
  callbacks of executors are taken out of the list of 1, and 1 and 2 follow. The steward
  waits for the other threads, stops the trees, and calls the callbacks of executors.

A callback of 1 counts as an executor's if its module keeps a record of threads, as
``concurrent.futures`` and its copies do. Every other callback is called at its usual
time: the threads that the steward waits for may end by it.

``atexit`` is the second line. It serves trees that were started meanwhile, and a Python
where no steward can be started.

Which thread runs what: ``_end`` runs on the main thread or on the steward's, or first
on the one and then on the other. No user code runs here, except the callbacks of
executors.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import select
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from otpy.runtime import log, threads
from otpy.runtime.account import ask_all
from otpy.runtime.stopping import Wait, await_end, never, wait_plainly
from otpy.runtime.threads import Role
from otpy.runtime.tree import SETTLE, Tree
from otpy.runtime.waiting import Bell, Reply

LAST_WORD = 2.0
"""Seconds that one line may take, if the log or stderr is blocked."""


def watch() -> None:
    """Have all trees stopped at the interpreter's end; called at the start of a tree."""
    global _is_watching  # noqa: PLW0603
    if not _is_watching:
        _is_watching = True
        atexit.register(_end)
        if (usual := getattr(threading, "_shutdown", None)) is not None:
            threading._shutdown = lambda: _shut_down(usual)  # type: ignore[attr-defined]


_is_watching = False
_held: list[Callable[[], object]] = []
"""The callbacks of executors that the steward calls. They were taken out of the list of
1."""


def _shut_down(usual: Callable[[], object]) -> None:
    """Be ``threading._shutdown``; the main thread calls it."""
    try:
        if any(_others()):
            _leave_it_to_a_steward()
        else:
            _end()
    except BaseException as error:  # the interpreter ends as usual, whatever was raised
        log.complain("end_failed", error)
    usual()


def _others() -> Iterator[threading.Thread]:
    """Yield the threads that keep the process alive, besides this one."""
    ours = {threading.main_thread(), threading.current_thread()}
    ours.update(thread for _, record in _executors() for thread in record)
    yield from (
        thread for thread in threading.enumerate() if not thread.daemon and thread not in ours
    )


def _executors() -> Iterator[tuple[Callable[[], object], list[threading.Thread]]]:
    """Yield the callbacks of executors, newest first, with the threads on record."""
    for callback in [*_held, *reversed(getattr(threading, "_threading_atexits", []))]:
        names: Mapping[str, object] = getattr(_function_of(callback), "__globals__", {})
        records = [
            list(one) for one in list(names.values()) if isinstance(one, weakref.WeakKeyDictionary)
        ]
        of_threads = [
            record for record in records if all(isinstance(one, threading.Thread) for one in record)
        ]
        if of_threads:
            yield callback, [thread for record in of_threads for thread in record]


def _function_of(callback: Any) -> Any:
    """Return the function that was registered.

    Until Python 3.12 the callback is a partial of it. From 3.13 on it is a lambda,
    which has the function in a cell.
    """
    cells = [cell.cell_contents for cell in getattr(callback, "__closure__", None) or ()]
    return next(filter(callable, cells), getattr(callback, "func", callback))


def _leave_it_to_a_steward() -> None:
    """Start the steward. Where that is impossible, leave everything to ``atexit``."""
    _held.extend(callback for callback, _ in _executors())
    callbacks: list[Any] = getattr(threading, "_threading_atexits", [])
    entry = threads.enlist(
        _be_steward,
        name="otpy (end)",
        role=Role.HELPER,
        purpose="ends trees",
        owner=None,
        daemon=False,
    )
    # The steward waits for all other threads. One of these may call shutdown_all, which
    # waits for every thread on record. With the steward on record, both would wait for
    # each other.
    threads.forget(entry.thread)
    before = list(callbacks)
    callbacks[:] = [one for one in before if one not in _held]
    try:
        threads.launch(entry)
    except RuntimeError as error:
        callbacks[:] = before
        _held.clear()
        log.complain(
            "no_new_threads", error, why=NO_NEW_THREADS if threads.STARTS_NONE_LATE else str(error)
        )


NO_NEW_THREADS = (
    "Python 3.12.0 to 3.12.2 starts no thread once the main thread has ended, "
    "so nothing can be restarted: upgrade it, or let the main thread wait"
)


def _be_steward() -> None:
    while others := list(_others()):
        for thread in others:
            thread.join()
    _end()
    for callback in _held:
        with contextlib.suppress(BaseException):  # the next callback must be called as well
            callback()


def _end() -> None:
    """Stop all trees, let the handlers finish, and log what was lost."""
    with _listening() as wait:
        stopped = _stop_all(wait)
        _flush(wait)
    for tree in stopped:
        threads.settle(tree, {Role.HELPER}, SETTLE)
    _keep_streams()
    if counts := log.take_counts():
        _say("told_before", again=counts)


@contextlib.contextmanager
def _listening() -> Iterator[Wait]:
    """Yield how to wait: at a bell, where that is possible.

    Without a bell, the handler of a signal that comes just before the wait for a lock
    would run only after the wait.
    """
    bell = Bell()
    try:
        bell.open()
    except (OSError, ValueError):  # no descriptors are left, or this is not the main thread
        bell.close()
        yield wait_plainly
        return
    try:
        yield bell.wait
    finally:
        bell.close()


def _stop_all(wait: Wait) -> list[Tree]:
    """Stop all trees, with all limits at zero after a Ctrl-C; return them."""
    asked: dict[Tree, Reply] = {}
    for within in (None, 0.0):
        try:
            asked |= ask_all(within)
            until = math.inf if within is None else time.monotonic() + within
            for tree in asked:
                _await_end(tree, until, wait)
        except KeyboardInterrupt:
            continue
        break
    return list(asked)


def _await_end(tree: Tree, until: float, wait: Wait) -> None:
    """Wait for the end of *tree*; log supervisors that do not answer, with stacks."""
    report = await_end(tree.directory[tree.root], lambda: until, wait)
    if report.unanswered:
        stacks = [one.stack for one in report.unstopped if one.path in report.unanswered]
        supervisors = list(report.unanswered)
        _say("no_answer", path=tree.root, supervisors=supervisors, stack="\n".join(stacks))


def _flush(wait: Wait) -> None:
    """Let the handlers of all trees finish; log how many reports are left over."""
    owners = dict.fromkeys(entry.owner for entry in threads.entries() if entry.role is Role.HANDLER)
    trees = [tree for tree in owners if isinstance(tree, Tree)]
    for tree in trees:
        if not tree.is_closed:  # it has been left
            tree.close()
    for tree in trees:
        try:
            tree.await_handlers(never, wait)
        except KeyboardInterrupt:
            for one in trees:
                one.hurry()
    for tree in trees:
        names = [one.name for one in tree.busy(Role.HANDLER)]
        if names and (lost := tree.telemetry.give_up()):
            _say("undelivered", path=tree.root, count=lost, handlers=names)


# The last words. The log or stderr may be blocked. So a thread writes each line, and
# this one waits for it no longer than LAST_WORD.


def _say(event: str, **fields: object) -> None:
    """Log one line; if that is not possible, write it to stderr."""
    if not _within(lambda: log.write("error", event, **fields)):
        text = f"otpy: {event} {fields}\n"
        if _within(lambda: log.mutter(text)) is None:
            log.mutter_at_once(text)


def _within(job: Callable[[], object]) -> bool | None:
    """Do *job* on a helper thread; return whether it was done in time, without raising.

    None: the system has no thread for it.
    """
    done: list[bool] = []

    def do() -> None:
        with contextlib.suppress(BaseException):
            job()
            done.append(True)

    try:
        thread = threads.spawn(
            do, name="otpy (last words)", role=Role.HELPER, purpose="says last words", owner=None
        )
    except (RuntimeError, MemoryError):
        return None
    thread.join(LAST_WORD)
    return bool(done)


# Threads that are left. Python aborts if it must lock a buffer that such a thread has
# locked. It locks stdout and stderr to flush them, and each stream to destroy it.

STREAMS = ("stdin", "stdout", "stderr")


def _keep_streams() -> None:
    """Keep the interpreter from locking a stream that a thread that is left may hold.

    A thread that was cut off keeps its outermost frame for ever. That frame holds the
    thread's entry. So a stream that the entry holds is never destroyed.
    """
    here = threading.current_thread()
    left = [
        entry for entry in threads.entries() if entry.thread.daemon and entry.thread is not here
    ]
    if not left:
        return
    streams = [getattr(sys, f"{mark}{name}{mark}", None) for name in STREAMS for mark in ("", "__")]
    for entry in left:
        entry.keeps = [*(entry.keeps or ()), *streams]
    for name in STREAMS[1:]:
        stream = getattr(sys, name, None)
        if stream is not None and _is_blocked(stream):
            setattr(sys, name, _another(stream))


def _is_blocked(stream: Any) -> bool:
    """Whether *stream* cannot be flushed.

    Without a thread to try that: whether its file is full.
    """
    is_flushed = _within(stream.flush)
    if is_flushed is not None:
        return not is_flushed
    try:
        return not select.select([], [stream.fileno()], [], LAST_WORD)[1]
    except (OSError, ValueError, AttributeError):
        return False  # it is unknown


def _another(stream: Any) -> Any:
    """Return a stream to the same file, with another lock; None: it has no file."""
    try:
        return open(
            stream.fileno(), "w", encoding=stream.encoding, errors=stream.errors, closefd=False
        )
    except (OSError, ValueError, AttributeError):
        return None
