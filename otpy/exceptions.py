"""Every exception of otpy, sorted by who must act on it.

* ``SpecError``: you described a tree that cannot be.
* ``Refusal`` and its kin: not now; the call changed nothing.
* ``StartError``, ``TreeFailed``: the tree did not come up, or gave up.
* ``Shutdown``, ``Ignore``, ``Fatal``: what a child may raise to say something.
* ``Killed``, ``Fenced``: what otpy raises inside a child.
* ``ProcessDied``, ``RemoteError``: what is told about a child in a process of its own; nobody raises them.
* ``InternalError``: ours; please report it.

A child's crash is none of these: it is data, an ``ExitReason``, and never an exception in a supervisor.
"""

from __future__ import annotations

import reprlib
import traceback

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def show(value: object) -> str:
    """Return a short text for *value*, whatever its ``__repr__`` does."""
    try:
        return printable(_SHORT.repr(value))
    except (
        BaseException
    ):  # reprlib catches Exception only, and this runs where a SystemExit would end a handler's thread
        return f"<{type(value).__name__} without a repr>"


def is_a(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether *error* is of one of *kinds*; unlike isinstance this runs no code of the exception's."""
    return issubclass(type(error), kinds)


def forget_locals(error: BaseException | None) -> None:
    """Release the local variables in the traceback of *error* and of all that led to it; the lines stay."""
    left: list[BaseException | None] = [error]
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        left += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of *error*, always printable, whatever the exception does."""
    try:
        return printable("".join(traceback.format_exception(error)))
    except Exception as worse:
        return f"{type(error).__name__}: its traceback could not be formatted: {show(worse)}\n"


def printable(text: str) -> str:
    """Return *text* with lone surrogates escaped, so that every stream can print it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class SpecError(ValueError):
    """Raised when a tree is described that cannot be; nothing has been started.

    Attributes:
        path: Where in the tree, as far as it is known where the error is found.
        field: The field of the spec that is wrong.
        value: What was given.
        expected: What would be right.
    """

    def __init__(self, path: str, field: str, value: object, expected: str) -> None:
        super().__init__(path, field, value, expected)
        self.path, self.field, self.value, self.expected = path, field, value, expected

    def __str__(self) -> str:
        return f"{self.path}: {self.field} = {show(self.value)}: expected {self.expected}"


class Refusal(Exception):
    """Base of all refusals: the call was not served. All but CallTimeout have changed nothing.

    Attributes:
        path: The child or the supervisor that the call was about.
    """

    why = "refused"

    def __init__(self, path: str, detail: str = "") -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail or self.why}"


class NotFound(Refusal, LookupError):
    """Raised when there is no such child, supervisor or context (OTP: not_found)."""

    why = "there is no such child"


class AlreadyStarted(Refusal):
    """Raised when a child of this id is running or starting (OTP: already_started)."""

    why = "a child of this id is already started"


class AlreadyPresent(Refusal):
    """Raised when a child of this id is specified but not running (OTP: already_present)."""

    why = "a child of this id is present; restart_child or delete_child it"


class StillRunning(Refusal):
    """Raised when the child must be terminated first (OTP: running)."""

    why = "the child is still running; terminate_child it first"


class StillRestarting(Refusal):
    """Raised when the child waits for its next restart; terminate_child cancels that (OTP: restarting)."""

    why = "the child is being restarted; terminate_child cancels that"


class MaxChildren(Refusal):
    """Raised when a dynamic supervisor has ``max_children`` children (Elixir: max_children)."""

    why = "the supervisor has as many children as max_children allows"


class NotAlive(Refusal):
    """Raised when the supervisor has ended, is ending, or is just being restarted (OTP: noproc)."""

    why = "the supervisor is not alive"


class CallTimeout(Refusal, TimeoutError):
    """Raised when a call was not answered in time; it stays on the queue and may still be served."""

    why = "no answer in time; the call may still be served"


class WouldDeadlock(Refusal):
    """Raised when a child calls for something that cannot happen before the child itself has ended or started."""

    why = "a child cannot wait for this from its own thread"


class StartError(Exception):
    """Raised when a tree or a child did not come up; what had been started was stopped again.

    The original exception, if there is one, is the ``__cause__``.

    Attributes:
        path: The child that failed, however deep in the tree.
        detail: Its exit reason, or a line for people.
    """

    def __init__(self, path: str, detail: object) -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def __str__(self) -> str:
        return f"{self.path} did not start: {self.detail}"


class TreeFailed(Exception):
    """Raised by ``run`` when the root supervisor gave up.

    Attributes:
        path: The root.
        reason: Its ``ExitReason``; ``reason.detail`` is the ``Escalation``, with its chain from leaf to root.
        report: The ``StopReport`` of the tree.
    """

    def __init__(self, path: str, reason: object, report: object) -> None:
        super().__init__(path, reason, report)
        self.path, self.reason, self.report = path, reason, report

    def __str__(self) -> str:
        return f"{self.path} gave up: {self.reason}"


class Shutdown(Exception):
    """Raise this in a child to end it in the normal class, with a reason (OTP: exit({shutdown, Reason}))."""


class Ignore(Exception):
    """Raise this in a child to decline the start: its spec stays, nothing runs (OTP: ignore)."""


class Fatal(Exception):
    """Raise this in a child to make its supervisor give up now, whatever restarts are left."""


class Killed(BaseException):
    """Raised by otpy inside a child that did not stop when asked; let it pass."""


class Fenced(BaseException):
    """Raised by every use of a context whose child was given up as unstopped; let it pass."""


class ProcessDied(Exception):
    """How it is told that a process has ended without a word; nobody raises it.

    A program always ends like this, and what it has said last is a note on this.

    Attributes:
        returncode: Its exit code, or minus the number of the signal that killed it; None: somebody else in this program
            has waited for it, and knows.
        signal: The name of that signal, such as "SIGSEGV"; None: it was none.
        stack: What the threads of a callable were doing when it died of a signal such as SIGSEGV, as faulthandler shows
            it; or "".
    """

    def __init__(self, returncode: int | None, signal: str | None = None, stack: str = "") -> None:
        super().__init__(returncode, signal, stack)
        self.returncode, self.signal, self.stack = returncode, signal, stack

    def __str__(self) -> str:
        if self.returncode is None:
            return "exit code unknown: something else in this program has reaped it"
        return f"killed by {self.signal}" if self.signal else f"exit code {self.returncode}"

    __repr__ = __str__


class RemoteError(Exception):
    """Stands for what a child in a process of its own has raised, where that cannot be pickled; nobody raises it.

    Its text is that of the original.
    """


class RemoteTraceback(Exception):
    """The cause of an exception that comes from another process: the traceback that it had there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class InternalError(Exception):
    """Raised when otpy itself is wrong. This should never happen; please report it."""
