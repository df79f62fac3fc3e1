"""Children that are Python callables, each in a process of its own.

Laws:
1. The supervisor's thread never waits. It gives orders, and reads what the keeper has
   noted; all that takes a while happens on the keeper's thread (keeper.py).
2. Every end gives exactly one ChildExited that counts, also if the keeper's thread ends
   without a word.

``describe`` runs where the user makes the spec. All methods of ``CalleeChild`` run on
the supervisor's thread. An order that comes before the process is there is kept until
it can be sent. Only a kill needs the number of the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.arguments import USE_ASYNCIO, check_call, check_function
from otpy.children.callable.keeper import Keeper, Line
from otpy.children.callable.parcel import Job, check_pickling
from otpy.children.callable.protocol import ASK, FENCE, LEAST
from otpy.children.endings import reason_of
from otpy.children.names import name_of, path_of
from otpy.core.messages import ChildExited
from otpy.exceptions import SpecError
from otpy.reports import CRASHED, ExitReason
from otpy.runtime import spares, threads
from otpy.runtime.threads import Role, ThreadState
from otpy.specs import ChildSpec, Common, check_common
from otpy.values import running, value

MAX_MESSAGE_SIZE = 64 << 20
"""The default of ``max_message_size``, in bytes."""


class CalleeOptions(Common, total=False):
    """The options of a callable; see ``process``."""

    max_message_size: int
    allow_pickle: bool


def describe(
    function: Callable[..., object],
    *args: Any,
    id: str | None = None,
    max_message_size: int = MAX_MESSAGE_SIZE,
    allow_pickle: bool = False,
    **common: Unpack[Common],
) -> ChildSpec:
    """Describe a Python callable in a process of its own; see ``process``.

    Raises:
        SpecError: A field is wrong, *function* cannot be called with these arguments,
            or cannot be sent to a process.
    """
    check_common("process(callable)", common)
    name = id if id is not None else name_of(function)
    path = path_of(name, "process")
    check_function(path, "target", function, "a callable", USE_ASYNCIO)
    check_call(path, "target", function, ("ctx", *args), "a callable that takes (ctx, *args)")
    if type(max_message_size) is not int or max_message_size < LEAST:
        raise SpecError(
            path, "max_message_size", max_message_size, f"a number of bytes, an int >= {LEAST}"
        )
    if not isinstance(allow_pickle, bool):
        raise SpecError(path, "allow_pickle", allow_pickle, "True or False")
    start = ProcessStart(function, args, max_message_size, allow_pickle)
    spec = ChildSpec(id=name, start=start, **common)
    check_pickling(path, "target", function, "a function of a module: a process has to import it")
    for index, arg in enumerate(args):
        check_pickling(path, f"args[{index}]", arg, "something that can be pickled")
    check_pickling(path, "snapshot", spec.snapshot, "a function of a module")
    return spec


@value
class ProcessStart(Job):
    """Makes a child in a process of its own; the ``start`` of its spec."""

    def __call__(self, birth: Birth) -> CalleeChild:
        return CalleeChild(birth, self)


@running
class CalleeChild:
    """One incarnation, as its supervisor's thread sees it. Meets ``Child``."""

    birth: Birth
    job: Job
    _line: Line = attrs.field(factory=Line, init=False)
    _keeper: Keeper = attrs.field(init=False)
    _thread: threading.Thread | None = attrs.field(default=None, init=False)

    def start(self, deliver: Deliver) -> None:
        birth, spec = self.birth, self.birth.spec
        self._keeper = Keeper(birth, self.job, self._line, deliver)
        purpose = spec.purpose or f"runs {spec.id}"
        try:
            self._thread = birth.spawn(
                self._keeper.run, name=birth.path, purpose=purpose, if_lost=self._is_lost
            )
        except (RuntimeError, MemoryError) as error:  # the system has no more threads
            spares.reserve.spend(error)
            birth.last_exit = None  # or each failed start would keep the one before alive
            deliver(ChildExited(birth.ref, ExitReason(CRASHED, error)))

    def stop(self) -> None:
        self._order(ASK)

    def kill(self, grace: float) -> bool:
        line = self._line
        with line.lock:
            # The keeper may judge the end just now. It reads running, and only if that
            # is False does it read is_killed. So is_killed is set first: the other
            # order would make a kill look like a stop.
            line.is_killed = True
            line.running = False
            if line.process is not None:
                line.process.kill()
        return True

    def abandon(self) -> None:
        self._line.is_fenced = True
        self._order(FENCE)
        self._mark(ThreadState.UNSTOPPED)

    def detach(self) -> None:
        self._mark(ThreadState.DETACHED)

    def pulse(self) -> tuple[float, float]:
        beat, silence = self._keeper.beat
        return beat, beat + silence

    @property
    def state(self) -> object:
        return self._keeper.saved

    def stack(self) -> str:
        """Return which process it is, and what it did when it was late.

        The supervisor's thread cannot see the stack itself, and does not wait for it.
        """
        line = self._line
        with line.lock:
            if line.process is None or line.process.pid is None or line.wires is None:
                return ""
            line.stacks = line.wires.last_stacks() or line.stacks
            return f"process {line.process.pid}, which runs {self.birth.spec.id}\n{line.stacks}"

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _order(self, order: bytes) -> None:
        line = self._line
        line.running = False
        with line.lock:
            if line.wires is not None:
                line.wires.order(order)

    def _mark(self, state: ThreadState) -> None:
        if self._thread is not None:
            threads.mark(self._thread, state, self.stop)

    def _is_lost(self) -> None:
        """End the process on another thread: the keeper's has ended without a word."""
        birth, keeper = self.birth, self._keeper
        lost = RuntimeError("its thread ended without a word")
        try:
            threads.spawn(
                lambda: keeper.end(lost),
                name=f"{birth.path} (lost)",
                role=Role.HELPER,
                purpose="ends a process",
                owner=birth.tree,
            )
        except (RuntimeError, MemoryError):
            # The system has no more threads. At least nothing of the child runs on.
            reason = reason_of(lost, self._line)
            self.kill(0.0)
            keeper.close_wires()
            keeper.report(reason)
