"""The threads to which coroutine children give calls that block.

They make the calls of ``asyncio.to_thread`` and ``loop.run_in_executor(None, …)``.

Laws:
1. A piece of work belongs to the child that has given it. The child's end is not
   reported before the work has ended, or the child's time is over. Work that goes on
   then is reported, with its stack.
2. The threads are daemons. Work that never ends does not hold up the interpreter's end,
   as it does in asyncio's own executor.
3. A loop has at most MOST threads, as in asyncio; further work waits. An idle thread
   sleeps until the loop is closed.

A look-up of a host's name is no work of a child. It may take long, it holds nothing,
and it ends by itself.

``Workers`` runs on the loop's thread, except ``_run``, which is the threads' own code.
``Work.do`` runs on one of them; any thread may cancel the future of a work.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from typing import Any

import attrs

from otpy.runtime import stacks, threads
from otpy.runtime.threads import Role, ThreadState
from otpy.values import running

MOST = min(32, (os.cpu_count() or 1) + 4)
"""How many threads there may be for one loop."""

LOOK_UPS = (socket.getaddrinfo, socket.getnameinfo)


@running
class Work:
    """A call that was given to a thread. If it does not end, it is a stray of the tree.

    Attributes:
        call: The call.
        future: Its outcome.
        thread: The thread that makes the call; None: it waits for one, or is done.
    """

    call: Callable[[], object]
    future: concurrent.futures.Future[Any] = attrs.field(factory=concurrent.futures.Future)
    thread: threading.Thread | None = None

    @property
    def alive(self) -> bool:
        return not self.future.done()

    def stack(self) -> str:
        thread = self.thread  # once: its thread sets it to None when the call is made
        return stacks.stack_of(thread.ident) if self.alive and thread is not None else ""

    def leave(self) -> None:
        """Mark its thread as given up; on the thread that gives it up."""
        thread = self.thread  # see ``stack``
        if self.alive and thread is not None:
            threads.mark(thread, ThreadState.UNSTOPPED)

    def do(self) -> None:
        """Make the call; on its thread."""
        if not self.future.set_running_or_notify_cancel():
            return
        self.thread, forks = threading.current_thread(), threads.forks
        result, error = _outcome(self.call)
        self.thread = None
        if threads.forks != forks:
            return  # the work has forked, and has ended in the fork, which has no loop
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


def _outcome(call: Callable[[], object]) -> tuple[object, BaseException | None]:
    """Return the result of *call*, and the exception that it raises.

    The frame that catches the exception must not know the future: the future holds the
    exception, which holds the frame, and they would be a cycle.
    """
    try:
        return call(), None
    except BaseException as error:
        return None, error


class Workers:
    """The threads of one loop: an executor, as ``loop.run_in_executor`` needs it.

    Args:
        name: The name of each of them.
        note: Called with each piece of work that belongs to a child, where it is given.
    """

    def __init__(self, name: str, note: Callable[[Work], object]) -> None:
        self._name, self._note = name, note
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        # one item for each thread that no piece of work in the queue is meant for
        self._idle: collections.deque[None] = collections.deque()
        self._count = 0
        self._is_closed = False

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Become the default executor of *loop*, until a child sets another one."""
        usual: Any = loop.run_in_executor
        use = loop.set_default_executor
        theirs: list[object] = []

        def run_in_executor(executor: Any, func: Callable[..., Any], *args: Any) -> Any:
            return usual(self if executor is None and not theirs else executor, func, *args)

        def set_default_executor(executor: Any) -> None:
            use(executor)
            theirs.append(executor)

        # asyncio accepts only a ThreadPoolExecutor as the default. So two methods of
        # this loop are replaced.
        patched: Any = loop
        patched.run_in_executor = run_in_executor
        patched.set_default_executor = set_default_executor

    def submit(self, func: Callable[..., object], /, *args: Any) -> concurrent.futures.Future[Any]:
        """Have *func* called on one of the threads.

        Raises:
            RuntimeError: The loop is closed; or the system has no more threads, and
                the loop has none yet.
        """
        if self._is_closed:
            raise RuntimeError("cannot give work to a loop that is closed")
        work = Work(lambda: func(*args))
        self._provide_thread()
        if not any(func is one for one in LOOK_UPS):
            self._note(work)
        self._queue.put(work)
        return work.future

    def close(self) -> None:
        """End the threads; a thread at work ends after its work."""
        self._is_closed = True
        for _ in range(self._count):
            self._queue.put(None)

    def _provide_thread(self) -> None:
        """Start a thread for one more piece of work, if none is idle."""
        with contextlib.suppress(IndexError):
            self._idle.pop()  # this one will take the work from the queue
            return
        if self._count < MOST:
            try:
                threads.spawn(
                    self._run,
                    name=self._name,
                    role=Role.HELPER,
                    purpose="does what blocks",
                    owner=self,
                )
            except (RuntimeError, MemoryError):
                if not self._count:
                    raise
            else:
                self._count += 1

    def _run(self) -> None:
        forks = threads.forks
        while threads.forks == forks and (work := self._queue.get()) is not None:
            work.do()
            del work  # an idle thread must not keep its last work alive
            self._idle.append(None)
