"""What is kept ready for the next failure: a thread for a replacement, and some memory.

Laws:
1. A child gets a thread that has run nothing before. What one child leaves in a thread
   (thread-locals, context variables) must not meet the next one.
2. No start depends on the spare: if there is none, or if it has died, a thread is made.

The thread of a supervisor calls all methods of its ``Spawner`` and of the spare, but
``Spare._wait``, which the spare itself runs. Any thread may use the ``reserve``.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Callable

from otpy.runtime import threads
from otpy.runtime.threads import DOUBT, Entry, Role, Thread, Witness


class Reserve:
    """Memory that is kept for the moment in which there is none left.

    It is address space only: its pages are never written, so it costs no memory. It is
    given back when otpy meets a MemoryError, so that the death of a child can be
    reported, and taken again in a calm moment.
    """

    SIZE = 256 * 1024

    def __init__(self) -> None:
        self._held: mmap.mmap | None = None

    def take(self) -> None:
        """Take it, if it is not held and there is as much memory."""
        if self._held is None:
            with contextlib.suppress(OSError, MemoryError):
                self._held = mmap.mmap(-1, self.SIZE)

    def spend(self, error: BaseException | None) -> None:
        """Give it back, if *error* is a MemoryError."""
        if issubclass(type(error), MemoryError):  # unlike isinstance this runs no code of its class
            held, self._held = self._held, None
            if held is not None:
                held.close()


reserve = Reserve()


class Spawner:
    """Starts the threads of the children of one supervisor, and keeps a spare.

    A spare is a thread that was started, waits, and has run nothing. A replacement that
    gets the spare does not wait until the system has made a thread.

    Attributes:
        is_short: Whether a spare is wanted, and there is none.
    """

    __slots__ = ("_keeps_one", "_name", "_owner", "_report", "_spare", "is_short")

    def __init__(
        self, owner: object, name: str, report: Callable[[Witness], object] = Witness.speak
    ) -> None:
        self._owner, self._name, self._report = owner, name, report
        self._spare: Spare | None = None
        self._keeps_one = self.is_short = False
        reserve.take()

    def keep_one(self) -> None:
        """Want a spare from the next ``spawn`` on."""
        self._keeps_one = True

    def spawn(
        self,
        target: Callable[[], object],
        *,
        name: str,
        purpose: str,
        if_lost: Callable[[], object] | None = None,
    ) -> Thread:
        """Have *target* run as a child in a thread that has run nothing before.

        Args:
            target, name, purpose: See ``threads.Entry``.
            if_lost: Called on the supervisor's thread if the thread ends in another way
                than by returning from *target*. It must not block or raise.

        Raises:
            RuntimeError: The system has no more threads to give, or no memory to begin
                one, or the interpreter is ending.
        """
        self.is_short = self._keeps_one
        if (spare := self._spare) is not None:
            try:
                thread = spare.become(target, name, purpose, if_lost)
            except BaseException:  # another thread has raised it here
                self.close()
                raise
            # Not before: an exception in ``become`` would leave a spare that no object
            # knows, and that waits for ever.
            self._spare = None
            if thread is not None:
                return thread
        return threads.launch(
            threads.enlist(
                target,
                name=name,
                role=Role.CHILD,
                purpose=purpose,
                owner=self._owner,
                if_lost=if_lost,
                report=self._report,
            )
        )

    def refill(self) -> None:
        """Make a spare, if the system has one more thread to give."""
        self.is_short = False
        reserve.take()
        try:
            # Keep it before it begins: then ``close`` always finds it.
            self._spare = Spare(self._owner, self._name, self._report)
            self._spare.begin()
        except Exception:  # also that of an audit hook: the tree runs without a spare
            self.close()

    def close(self) -> None:
        """Let the spare end."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.dismiss()


class Spare:
    """A thread that waits until it is needed."""

    __slots__ = ("_entry", "_gate", "_taken", "_target")

    def __init__(self, owner: object, name: str, report: Callable[[Witness], object]) -> None:
        self._target: Callable[[], object] | None = None
        self._gate, self._taken = threading.Lock(), threading.Lock()
        self._gate.acquire()
        self._taken.acquire()
        self._entry: Entry | None = threads.enlist(
            self._wait,
            name=f"{name} (spare)",
            role=Role.SPARE,
            purpose="waits to be a replacement",
            owner=owner,
            report=report,
        )

    def begin(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no more threads to give.
        """
        assert self._entry is not None, "it begins before it is used"
        threads.launch(self._entry)

    def become(
        self,
        target: Callable[[], object],
        name: str,
        purpose: str,
        if_lost: Callable[[], object] | None,
    ) -> Thread | None:
        """Let it run *target* as a child, and wait until it does.

        Otherwise this thread keeps the GIL: the spare wakes up, finds it taken, and has
        to wake up again.

        Returns:
            The thread; None: it has died of an exception that another thread raised in it
            while it waited.
        """
        before = self._entry
        assert before is not None, "it can become a child once"
        self._target, self._entry = target, None  # the spare and its entry would be a cycle
        thread = threads.transform(before, target, name, purpose)
        witness = thread.witness
        if witness is not None:
            witness.if_lost = if_lost
        self._gate.release()
        while not self._taken.acquire(timeout=DOUBT):
            # The thread may take the target and end between the two looks. So look for
            # its end first: in the other order a child that has run would be run again.
            if not thread.is_alive() and not self._taken.acquire(blocking=False):
                if witness is not None:
                    witness.if_lost = None  # it was no child yet
                threads.forget(thread)
                return None
        return thread

    def dismiss(self) -> None:
        """Let it end without having run anything, unless it runs as a child already."""
        self._target = self._entry = None
        with contextlib.suppress(RuntimeError):  # the gate is open already
            self._gate.release()

    def _wait(self) -> None:
        self._gate.acquire()
        if (target := self._target) is not None:
            self._taken.release()
            target()
