"""Every exception of otpy, sorted by who must act on it.

* ``SpecError``: you described a tree that cannot be.
* ``Refusal`` and its kin: not now; the call changed nothing.
* ``StartError``, ``TreeFailed``: the tree did not come up, or gave up.
* ``Shutdown``, ``Ignore``, ``Fatal``: what a child may raise to say something.
* ``Killed``, ``Fenced``: what otpy raises inside a child.
* ``ProcessDied``, ``RemoteError``, ``ProtocolError``: why a child in a process of its
  own has ended, as its exit reason tells it; no call raises them.
* ``InternalError``: ours; please report it.

``means_success`` and ``meaning_of`` say what an exception means to a supervisor, for
every kind of child.

A child's crash is none of these: it is data, an ``ExitReason``, and never an exception
in a supervisor.
"""

from __future__ import annotations

import reprlib
import traceback
from types import TracebackType
from typing import Any, TypeGuard

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def show(value: object) -> str:
    """Return a short text for *value*, whatever its ``__repr__`` does."""
    try:
        return printable(_SHORT.repr(value))
    except BaseException:
        # reprlib catches Exception only. A SystemExit here would end the thread of a handler.
        return f"<{type_name(value)} without a repr>"


def type_name(value: object) -> str:
    """Return the name of the class of *value*, without running code of a metaclass."""
    name: str = vars(type)["__name__"].__get__(type(value))
    return name


# What is read of an exception that a user has raised. Its class may define a property
# over each of the attributes that all exceptions have, and that property may raise
# anything. The slots of BaseException run no code of the class.

_SLOTS: Any = vars(BaseException)
_GROUP: Any = vars(BaseExceptionGroup)


def is_a(error: BaseException | Sealed | None, *kinds: type[BaseException]) -> bool:
    """Whether *error* is of one of *kinds*.

    Unlike isinstance this runs no code of the exception's, and opens none.
    """
    return issubclass(error.kind if is_sealed(error) else type(error), kinds)


def traceback_object(error: BaseException) -> TracebackType | None:
    """Return the traceback of *error*; this runs no code of the exception's."""
    found: TracebackType | None = _SLOTS["__traceback__"].__get__(error)
    return found


def set_traceback(error: BaseException, found: TracebackType | None) -> None:
    """Give *error* another traceback; this runs no code of the exception's."""
    _SLOTS["__traceback__"].__set__(error, found)


def lineage(error: BaseException | None) -> list[BaseException]:
    """Return *error* and all that led to it, each once, without running their code."""
    left: list[BaseException | None] = [error]
    found: list[BaseException] = []
    seen: set[int] = set()
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        found.append(one)
        left += [_SLOTS["__cause__"].__get__(one), _SLOTS["__context__"].__get__(one)]
        if issubclass(type(one), BaseExceptionGroup):
            left += _GROUP["exceptions"].__get__(one)
    return found


def traceback_of(error: BaseException) -> str:
    """Return the formatted traceback of *error*, whatever the exception does."""
    try:
        return printable("".join(traceback.format_exception(error)))
    except BaseException as worse:
        return _plain_traceback(error, worse)


def _plain_traceback(error: BaseException, worse: BaseException) -> str:
    """Return the lines of an exception that cannot be formatted, and why it cannot."""
    try:
        lines = traceback.format_tb(traceback_object(error))
    except BaseException:  # the lines come from wherever the modules were loaded from
        lines = []
    head = ["Traceback (most recent call last):\n"] if lines else []
    last = f"{type_name(error)}: its traceback could not be formatted: {show(worse)}\n"
    return printable("".join([*head, *lines, last]))


def printable(text: str) -> str:
    """Return *text* as every stream can print it, without orders to a terminal.

    Escaped, as in Python's literals, are lone surrogates, control characters but for
    newline and tab, and what changes the direction of the text around it. The one place
    for this: text from children and strangers passes here before it is logged or
    printed.
    """
    clean = text.replace("\r\n", "\n").translate(_OBEYED)
    return clean.encode("utf-8", "backslashreplace").decode("utf-8")


def in_one_line(text: str) -> str:
    """Return *text* in one line of visible characters, anything else escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


_CONTROLS = ({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}) | {0x2028, 0x2029}
_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_OBEYED = {code: chr(code).encode("unicode_escape").decode() for code in _CONTROLS | _DIRECTIONS}


def qualified_name(error: BaseException) -> str:
    """Return the name of the class of *error*, as a traceback shows it."""
    kind = type(error)
    module = kind.__module__
    return (
        kind.__qualname__
        if module in ("builtins", "__main__", "__mp_main__")
        else f"{module}.{kind.__qualname__}"
    )


def text_of(error: BaseException) -> str:
    """Return what ``str`` gives, always printable, whatever the exception does."""
    try:
        return printable(str(error))
    except Exception as worse:
        return f"its text could not be made: {qualified_name(worse)}"


class Sealed:
    """An exception of another process, before a reader has asked for it, in words.

    Whatever decides about a child, or writes a log, uses these words. ``open`` makes
    the exception itself. A reader calls that on its own thread, through
    ``ExitReason.exception``; a supervisor's thread never does.

    Attributes:
        kind: What it means to a supervisor (``meaning_of``): ``Fatal``, ``Ignore``,
            ``Shutdown``, ``Killed`` or ``Fenced``; else ``Exception``.
        type_name: The name of its class.
        message: What ``str`` gave in its process.
        shown: What ``repr`` gave in its process, perhaps shortened.
        traceback: Its traceback in its process, formatted.
    """

    __slots__ = ("_opened", "kind", "message", "shown", "traceback", "type_name")

    def __init__(
        self, kind: type[BaseException], type_name: str, message: str, shown: str, traceback: str
    ) -> None:
        self.kind, self.type_name, self.message = kind, type_name, message
        self.shown, self.traceback = shown, traceback
        self._opened: dict[None, BaseException] = {}

    def open(self) -> BaseException:
        """Return the exception, the same one each time.

        Its cause is its traceback as a ``RemoteTraceback``.

        What cannot be made here is a ``RemoteError``, or of ``kind``. Two threads may
        do this at once, and the first one decides which object it is: ``setdefault`` is
        one step.
        """
        if not self._opened:
            error = self._rebuilt()
            if error is None or (meaning_of(error) or Exception) is not self.kind:
                error = self.stand_in()
            _set_cause(error, RemoteTraceback(self.traceback))
            self._opened.setdefault(None, error)
        return self._opened[None]

    def stand_in(self) -> BaseException:
        """Return an exception that is made of the words alone, a new one each time."""
        if self.kind is Exception:
            return RemoteError(self.type_name, self.message, self.traceback)
        error = self.kind(self.message)
        _set_cause(error, RemoteTraceback(self.traceback))
        return error

    def _rebuilt(self) -> BaseException | None:
        """Make the exception; None: it cannot be made here."""
        return None

    def __repr__(self) -> str:
        return self.shown


def is_sealed(raised: object) -> TypeGuard[Sealed]:
    """Whether *raised* is sealed; unlike isinstance this runs no code of its class."""
    return issubclass(type(raised), Sealed)


_set_cause = vars(BaseException)["__cause__"].__set__
"""Sets a cause without a look at what the exception's class makes of that."""


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
    """The base of all refusals: the call was not served.

    No refusal but CallTimeout has changed anything.

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
    """Raised when a spec of this id is there, and not running (OTP: already_present)."""

    why = "a child of this id is present; restart_child or delete_child it"


class StillRunning(Refusal):
    """Raised when the child must be terminated first (OTP: running)."""

    why = "the child is still running; terminate_child it first"


class StillRestarting(Refusal):
    """Raised when the child waits for its next restart (OTP: restarting).

    ``terminate_child`` cancels that restart.
    """

    why = "the child is being restarted; terminate_child cancels that"


class MaxChildren(Refusal):
    """Raised when a dynamic supervisor has ``max_children`` children (as in Elixir)."""

    why = "the supervisor has as many children as max_children allows"


class NotAlive(Refusal):
    """Raised when the supervisor has ended, is ending or is restarted (OTP: noproc)."""

    why = "the supervisor is not alive"


class CallTimeout(Refusal, TimeoutError):
    """Raised when a call was not answered in time. It may still be served later."""

    why = "no answer in time; the call may still be served"


class WouldDeadlock(Refusal):
    """Raised when a child calls for what cannot be before it has itself ended or started."""

    why = "a child cannot wait for this from its own thread"


class StartError(Exception):
    """Raised when a tree or a child did not come up. It has been stopped again.

    The original exception, if there is one, is the ``__cause__``.

    Attributes:
        path: The child that failed, however deep in the tree.
        detail: Its exit reason, or a line for people.
    """

    def __init__(self, path: str, detail: object) -> None:
        super().__init__(path, detail)
        self.path, self.detail = path, detail

    def caused_by(self, raised: BaseException | Sealed | None) -> StartError:
        """Set the cause, and return this; the words of a sealed one stand in for it."""
        cause = raised.stand_in() if is_sealed(raised) else raised
        self.__cause__ = cause  # type: ignore[assignment]
        return self

    def open(self) -> None:
        """Open a sealed cause; called by the thread that is about to raise this."""
        if is_sealed(raised := getattr(self.detail, "raised", None)):
            self.__cause__ = raised.open()

    def __str__(self) -> str:
        return f"{self.path} did not start: {self.detail}"


class TreeFailed(Exception):
    """Raised by ``run`` when the root supervisor gave up.

    Attributes:
        path: The root.
        reason: Its ``ExitReason``; ``reason.detail`` is the ``Escalation``, with its
            chain from leaf to root.
        report: The ``StopReport`` of the tree.
    """

    def __init__(self, path: str, reason: object, report: object) -> None:
        super().__init__(path, reason, report)
        self.path, self.reason, self.report = path, reason, report

    def __str__(self) -> str:
        return f"{self.path} gave up: {self.reason}"


class Shutdown(Exception):
    """Raise this in a child to end it in the normal class, with a reason.

    OTP: ``exit({shutdown, Reason})``.
    """


class Ignore(Exception):
    """Raise this in a child to decline the start (OTP: ignore). Its spec stays."""


class Fatal(Exception):
    """Raise this in a child to make its supervisor give up at once."""


class Killed(BaseException):
    """Raised by otpy inside a child that did not stop when asked; let it pass."""


class Fenced(BaseException):
    """Raised by every use of a context whose child was given up. Let it pass."""


CONTROL: tuple[type[BaseException], ...] = (Killed, Fenced, Fatal, Shutdown, Ignore)
"""What an exception may say to a supervisor, the strongest first."""

_SAYING = (*CONTROL, BaseExceptionGroup)
_CODE = vars(SystemExit)["code"]
_MEMBERS = vars(BaseExceptionGroup)["exceptions"]


def meaning_of(error: BaseException | Sealed | None) -> type[BaseException] | None:
    """Return which of CONTROL *error* means; None: it says nothing to a supervisor.

    A group that holds nothing else, in whatever depth, means the strongest that it
    holds. So ``Fatal`` means the same when it comes out of an ``asyncio.TaskGroup``.
    Runs no code of the exception's, and opens no sealed one.
    """
    own: type = type(error)
    if issubclass(own, Sealed):
        own = error.kind  # type: ignore[union-attr]
    if not issubclass(own, _SAYING):  # most are not: one look is enough
        return None
    if not issubclass(own, BaseExceptionGroup):
        return next(kind for kind in CONTROL if issubclass(own, kind))
    found: set[type[BaseException]] = set()
    seen: set[int] = set()  # groups may share members: each is looked at once
    left = [error]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if is_a(one, BaseExceptionGroup):
            left += _MEMBERS.__get__(one)
        elif (kind := meaning_of(one)) is not None:
            found.add(kind)
        else:
            return None
    return next(kind for kind in CONTROL if kind in found)


def means_success(error: BaseException | Sealed | None) -> bool:
    """Whether *error* is a SystemExit that says that all is well: its code is None, or
    an int that equals 0.

    This is how the interpreter makes an exit status: False is 0, and 0.0 is not. Runs
    no code of the exception's or of its code's.
    """
    if not issubclass(type(error), SystemExit):
        return False
    code = _CODE.__get__(error)
    return code is None or (issubclass(type(code), int) and int.__eq__(code, 0))


class ProcessDied(Exception):
    """The exception of a process that ended without an exception of its own.

    It stands in an ``ExitReason``, and is never raised. Every program that fails ends
    with it; the last output of the program is a note on it.

    Attributes:
        returncode: The exit code, or minus the number of the signal that killed the
            process; None: unknown, because other code in the parent process has reaped
            it.
        signal: The name of that signal, such as "SIGSEGV"; None: no signal killed it.
        stack: The stacks of the threads of a callable that died of a signal such as
            SIGSEGV, as faulthandler shows them; or "".
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
    """Stands for what a callable in a process has raised, and cannot be made here.

    Exit reasons have it; no call raises it.

    Attributes:
        type_name: The name of its class there, with its module.
        message: What ``str`` gave there.
        traceback: Its traceback there, formatted.
    """

    def __init__(self, type_name: str, message: str = "", traceback: str = "") -> None:
        super().__init__(type_name, message, traceback)
        self.type_name, self.message, self.traceback = type_name, message, traceback

    def __str__(self) -> str:
        return printable(f"{self.type_name}: {self.message}" if self.message else self.type_name)

    def __repr__(self) -> str:
        return f"RemoteError({str(self)!r})"


class ProtocolError(Exception):
    """Why a callable in a process was killed: it sent what it may not send.

    A message that is too large, or that is none; its text says which. Exit reasons have
    it; no call raises it.
    """


class RemoteTraceback(Exception):
    """The cause of an exception from another process: its traceback there, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


class InternalError(Exception):
    """Raised when otpy itself is wrong. This should never happen; please report it."""
