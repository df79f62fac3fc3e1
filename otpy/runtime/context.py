"""What a child sees of its tree: ``ctx``.

Laws:
1. No lock stands between the child and its supervisor. Each flag is written by one side
   only. A callback is called by exactly one of the threads that try to take it.
2. What a child saves stays in its own context until the supervisor takes it over: when
   the child has ended, or is given up. So a child that was given up has nothing to write
   to.
3. Callbacks of the user run on helper threads, never on the supervisor's thread.

The threads of the child use a context. The supervisor's thread calls ``ask``, ``fence``
and ``pulse``, and reads ``saved``.
"""

from __future__ import annotations

import contextvars
import copy
import functools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from otpy.abc import Birth, Deliver
from otpy.arguments import check_result, why_no_handler
from otpy.core.messages import ChildStarted
from otpy.exceptions import Fenced, NotFound, show
from otpy.reports import ExitReason
from otpy.runtime import log, threads
from otpy.runtime.threads import Role
from otpy.runtime.waiting import Once
from otpy.specs import is_number

RETRY = 0.1
"""Seconds before a thread is asked for again that the system has refused."""

UNCHANGED: Any = object()
"""The state that ``check_in`` does not save."""

PLAIN = frozenset({bool, bytes, complex, float, int, str, type(None)})
"""The types of values that need no copy: they cannot change."""


class Context:
    """Show a child its tree; the first argument of every target.

    When the child has been given up as unstopped, ``running`` stays False and every
    other use raises ``Fenced``.

    Attributes:
        running: True until the child is asked to stop.
        saved: The state that is left to the replacement, and no copy of it.
    """

    __slots__ = (
        "__weakref__",
        "_beat",
        "_birth",
        "_callbacks",
        "_deliver",
        "_fenced",
        "_gate",
        "_is_ready",
        "_monotonic",
        "_stop",
        "_thread",
        "running",
        "saved",
    )

    def __init__(self, birth: Birth, deliver: Deliver, stop: Once | None = None) -> None:
        self.running = True
        self._birth, self._deliver = birth, deliver
        self._stop = stop or Once()
        self._callbacks: list[Callable[[], object]] = []
        self._is_ready = not birth.spec.ready
        self._fenced = False
        self._thread: int | None = None
        self._gate: Once | None = None
        self.saved = birth.handover.state
        self._monotonic = birth.tree.clock.monotonic
        # The time of the last check-in, or that and the seconds that are allowed once.
        # It is one attribute: the supervisor's thread may read between two stores.
        self._beat: float | tuple[float, float] = self._monotonic()

    @property
    def id(self) -> str:
        """The id of the child among its siblings."""
        return self._use().spec.id

    @property
    def path(self) -> str:
        """The ids from the root down to the child, joined by "/"."""
        return self._use().path

    @property
    def incarnation(self) -> int:
        """How often the child has been started, this time included."""
        return self._use().incarnation

    @property
    def last_exit(self) -> ExitReason | None:
        """Why the incarnation before this one has ended; None: there was none."""
        return self._use().last_exit

    @property
    def supervisor(self) -> Any:
        """The handle of the child's supervisor."""
        return self._use().supervisor

    @property
    def log(self) -> Any:
        """A structlog logger, bound to path and incarnation."""
        birth = self._use()
        return log.logger(path=birth.path, incarnation=birth.incarnation)

    @property
    def state(self) -> Any:
        """The state that ``check_in(state)`` saved last, in this incarnation or an earlier one.

        None: nothing was saved. It is a copy: a change of it has no effect before it is
        saved again. With the option ``snapshot`` it is the very object that this
        function returned.
        """
        snapshot = self._use().spec.snapshot
        is_copied = snapshot is copy.deepcopy and type(self.saved) not in PLAIN
        return copy.deepcopy(self.saved) if is_copied else self.saved

    def check_in(self, state: Any = UNCHANGED, *, allow: float | None = None) -> None:
        """Report that all is well; a child with a ``heartbeat`` must do so at least that often.

        It costs next to nothing.

        Args:
            state: Save this for the replacement, as it is now: a later change of the
                object does not change what is saved. See the option ``snapshot`` for how
                it is copied. If the copying raises, nothing is saved, and the exception
                leaves this method.
            allow: The next check-in may take as many seconds, this once, if that is more
                than the heartbeat.

        Raises:
            ValueError: *allow* is not a finite number > 0.
        """
        if state is UNCHANGED and allow is None:
            # a local: to call what is in a slot costs CPython 3.11 a search
            monotonic = self._monotonic
            self._beat = monotonic()
        else:
            self._check_in_with(state, allow)

    def sleep(self, seconds: float) -> None:
        """Sleep, or return early when the child is asked to stop.

        Args:
            seconds: How long, >= 0.
        """
        self.wait_stop(seconds)

    def wait_stop(self, timeout: float | None = None) -> bool:
        """Wait until the child is asked to stop, or *timeout* seconds.

        Args:
            timeout: Seconds, >= 0; None: without a limit.

        Returns:
            Whether the child has been asked to stop.

        Raises:
            ValueError: *timeout* is negative or not a number.
        """
        self._use()
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout = {timeout!r}: expected a number of seconds >= 0")
        asked = self._stop.wait(timeout)
        self._use()  # it may have been fenced in its sleep
        return asked

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Have *callback* called once, on a helper thread, when the child is asked to stop.

        Use it to wake a blocked child: close the socket, shut the server down. It is
        called at once if the child has been asked already. An exception of it is logged.
        It stays registered until the child ends: register one callback for the whole
        life, not one for each item of work.

        Args:
            callback: Called without arguments.

        Raises:
            TypeError: *callback* cannot be called without arguments, or is an async
                function.
        """
        self._use()
        if why := why_no_handler(callback, (), "a callable that takes no arguments"):
            raise TypeError(f"callback = {show(callback)}: expected {why}")
        self._callbacks.append(callback)
        # The supervisor's thread may call ``ask`` just now, and find no callback. This
        # thread appends first and looks second; ``ask`` sets the flag first and looks
        # second. So whichever thread makes its second step later finds the callback.
        if not self.running:
            self._call_back()
        elif threads.STARTS_NONE_LATE and self._gate is None:
            self._prepare()

    def ready(self) -> None:
        """Report that the start is complete; for a child with ``ready=True``.

        A second call does nothing.
        """
        birth = self._use()
        if not self._is_ready:
            self._is_ready = True
            self._beat = self._monotonic()
            self._deliver(ChildStarted(birth.ref, self._runner()))

    @property
    def is_ready(self) -> bool:
        """Whether the start of the child is complete."""
        self._use()
        return self._is_ready

    def __repr__(self) -> str:
        return f"<Context of {self._birth.path}, incarnation {self._birth.incarnation}>"

    # For the kinds of children and the supervisor, not for the children themselves

    def enter(self) -> None:
        """Make this the context of the code that runs in this thread."""
        self._thread = threading.get_ident()
        _current.set(self)

    @property
    def _is_over_here(self) -> bool:
        """Whether its child has been given up, and this is not the child's own thread."""
        return self._fenced and self._thread != threading.get_ident()

    def hangs_on(self, tree: object, path: str) -> str | None:
        """Return the id of the child of the supervisor *path* at or below which this child is.

        Returns None if there is no such child, or if a call that is made on this thread
        does not hold up the child: its own thread is another one.
        """
        birth = self._use()
        if (
            birth.tree is not tree
            or not self._is_held_up()
            or not birth.path.startswith(path + "/")
        ):
            return None
        return birth.path[len(path) + 1 :].partition("/")[0]

    @property
    def _is_elsewhere(self) -> bool:
        """Whether this process is a forked one: the child runs in its parent process."""
        is_foreign: bool = self._birth.tree.is_foreign
        return is_foreign

    def _is_held_up(self) -> bool:
        """Whether a call that is made here keeps the child from ending or from
        starting.
        """
        return self._thread == threading.get_ident()

    def ask(self) -> None:
        """Ask the child to stop. Idempotent."""
        if self.running:
            self.running = False
            self._stop.happen()
            if self._callbacks:
                self._call_back()
        else:
            # The thread that asked first may have been hit by an exception in between.
            self._stop.happen()

    def fence(self) -> None:
        """Make this context useless."""
        self._fenced = True
        self._monotonic = functools.partial(_refuse, self._birth.path)

    def pulse(self) -> tuple[float, float]:
        """Return when the child checked in last, and until when it may be silent,
        monotonic.
        """
        beat, heartbeat = self._beat, self._birth.spec.heartbeat or 0.0
        if isinstance(beat, tuple):
            return beat[0], beat[0] + max(heartbeat, beat[1])
        return beat, beat + heartbeat

    def _copied(self, value: object) -> object:
        snapshot = self._birth.spec.snapshot
        if snapshot is None or (snapshot is copy.deepcopy and type(value) in PLAIN):
            return value
        copied = snapshot(value)
        if snapshot is not copy.deepcopy:
            check_result(snapshot, copied)
        return copied

    def _check_in_with(self, state: Any, allow: float | None) -> None:
        self._use()
        if state is not UNCHANGED:
            self.saved = self._copied(state)
        if allow is None:
            self._beat = self._monotonic()
        elif is_number(allow) and allow > 0:
            self._beat = (self._monotonic(), allow)
        else:
            raise ValueError(f"allow = {show(allow)}: expected a finite number of seconds > 0")

    def _runner(self) -> str:
        """Return the name of the thread that runs the child."""
        return threading.current_thread().name

    def _use(self) -> Birth:
        if self._fenced:
            raise Fenced(self._birth.path)
        return self._birth

    def _prepare(self) -> None:
        """Start the helper thread already now: at the interpreter's end none can be started.

        The helper waits until the child is asked to stop, until the thread that calls
        this has ended, which is that of the child, or until this object is freed.
        """
        gate = self._gate = Once()
        itself = weakref.ref(self, lambda _: gate.happen())

        def wait() -> None:
            gate.wait(None)
            ctx = itself()
            if ctx is not None and not ctx.running:
                ctx._drain()

        threads.when_ended(threading.current_thread(), gate.happen)
        self._birth.tree.telemetry.helpers.run(wait, f"{self._birth.path} (on_stop)", Role.HELPER)

    def _call_back(self) -> None:
        birth = self._birth
        if self._gate is not None and not self._gate.has_happened:
            self._gate.happen()
        elif not (helpers := birth.tree.telemetry.helpers).run(
            self._drain, f"{birth.path} (on_stop)", Role.HELPER
        ):
            if helpers.is_closed:  # the child was detached, and its tree has no thread any more
                contextvars.copy_context().run(self._drain)
            else:
                birth.remind(RETRY, self._retry)

    def _retry(self) -> None:
        """Ask for a thread again, on the supervisor's: others may have ended meanwhile."""
        if not self._birth.tree.telemetry.helpers.retry():
            self._birth.remind(RETRY, self._retry)

    def _drain(self) -> None:
        _current.set(self)
        forks = threads.forks
        while self._callbacks and threads.forks == forks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return  # another helper was faster
            try:
                check_result(callback, callback())
            except BaseException as error:
                log.complain("on_stop_failed", error, path=self._birth.path)


def _refuse(path: str) -> float:
    raise Fenced(path)


_current: contextvars.ContextVar[Context] = contextvars.ContextVar("otpy.current")

FAR_SIDE = "otpy.children.callable.far_side"
"""The module that runs a callable child in its own process.

Only such a process imports it.
"""


def current() -> Context:
    """Return the context of the child whose code is running.

    A thread that a child has started, and that has inherited its context variables, runs
    code of the child until the child has been given up.

    Raises:
        NotFound: This is not the code of a child.
    """
    far_side: Any = sys.modules.get(FAR_SIDE)
    ctx: Context | None = _current.get(far_side and far_side.here)  # a whole process may be a child
    if ctx is None or (isinstance(ctx, Context) and (ctx._is_over_here or ctx._is_elsewhere)):
        raise NotFound("<current>", "no child's code is running here")
    return ctx
