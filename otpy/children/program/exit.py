"""How a program has ended, and the exit reason that its supervisor gets for it."""

from __future__ import annotations

import signal

import attrs

from otpy.exceptions import ProcessDied, printable
from otpy.reports import CRASHED, KILLED, NORMAL, SHUTDOWN, ExitReason
from otpy.runtime.posix import signal_name
from otpy.values import Value, value

QUOTED = 4096
"""How many bytes of stderr are shown with a crash; the reason has more."""


@value
class ProgramExit(Value):
    """How a program has ended; the ``detail`` of its ``ExitReason``.

    Attributes:
        returncode: As in ``subprocess``: the exit code, or minus the number of the signal.
            None: it is not known, because something else in this process has reaped it.
        stderr: The last of what this run has written, at most 64 KiB.
    """

    returncode: int | None
    stderr: bytes = attrs.field(repr=False)

    @property
    def signal(self) -> str | None:
        """The signal that has killed it, such as "SIGSEGV"; None: none has."""
        return signal_name(self.returncode)

    def __str__(self) -> str:
        return str(ProcessDied(self.returncode, self.signal))


def reason_of(
    exit: ProgramExit, *, is_asked: bool, is_killed: bool, success_codes: frozenset[int]
) -> ExitReason:
    """Return the exit reason of a program that ran.

    Args:
        is_asked, is_killed: Whether its supervisor has asked it to stop, or killed it.
        success_codes: Its exit codes of a normal end.
    """
    if is_killed and exit.returncode in (-signal.SIGKILL, None):
        return ExitReason(KILLED, _died(exit), exit)
    if is_asked:
        return ExitReason(SHUTDOWN, detail=exit)
    if exit.returncode in success_codes:
        return ExitReason(NORMAL, detail=exit)
    return ExitReason(CRASHED, _died(exit), exit)


def _died(exit: ProgramExit) -> ProcessDied:
    error = ProcessDied(exit.returncode, exit.signal)
    if exit.stderr:
        error.add_note(shown(exit.stderr).rstrip("\n"))
    return error


def shown(stderr: bytes) -> str:
    """Return the end of *stderr* as it is shown to people."""
    return printable(stderr[-QUOTED:].decode("utf-8", "replace"))
