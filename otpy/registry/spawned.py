"""What a spawned thread runs: one call of a target, whose failure is reported.

All of a ``Spawned`` runs on that thread, except ``spawned``, which makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from otpy.arguments import USE_ASYNCIO, check_call, check_function, check_result
from otpy.exceptions import SpecError, means_success
from otpy.reports import ExitKind, ExitReason
from otpy.values import running


def check(name: object, field: str, value: object, is_right: bool, expected: str) -> None:
    """Refuse the *value* of an argument that is not right.

    Args:
        name: The thread that the argument is about.
        expected: The values that are right, in words for the error.

    Raises:
        SpecError: *is_right* is false.
    """
    if not is_right:
        path = name if isinstance(name, str) and name else "<thread>"
        raise SpecError(path, field, value, expected)


@running(frozen=True)
class Spawned:
    """One call of a target.

    Attributes:
        name: The name of the thread.
        target, args, kwargs: The call.
        report: Called with the name and the reason, if the call has failed.
    """

    name: str
    target: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    report: Callable[[str, ExitReason], None]

    def run(self) -> None:
        """Be the thread: call the target, and report its failure."""
        try:
            self._report_failure(self._outcome())
        # Another thread may raise an exception in this one after the last line of the
        # target, or while its own failure is handled. It would go to the hook of
        # Python, and there would be no report. The call has not been reported yet.
        except BaseException as late:
            self._report_failure(late)

    def _outcome(self) -> BaseException | None:
        try:
            check_result(self.target, self.target(*self.args, **self.kwargs), USE_ASYNCIO)
        except BaseException as error:
            return error
        return None

    def _report_failure(self, error: BaseException | None) -> None:
        if error is not None and not means_success(error):
            self.report(self.name, ExitReason(ExitKind.CRASHED, error))


def spawned(
    name: str, target: Any, args: Any, kwargs: Any, report: Callable[[str, ExitReason], None]
) -> Spawned:
    """Return the call, or refuse one that would fail in the first moment of the thread.

    Raises:
        SpecError: An argument is wrong.
    """
    check_function(name, "target", target, "a callable", USE_ASYNCIO)
    is_right = isinstance(args, Iterable) and not isinstance(args, str | bytes)
    check(name, "args", args, is_right, "a tuple, or another iterable that is no string")
    is_right = kwargs is None or (
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs)
    )
    check(name, "kwargs", kwargs, is_right, "a dict whose keys are str, or None")
    args, kwargs = tuple(args), dict(kwargs or {})
    check_call(name, "target", target, args, "a callable that takes args and kwargs", kwargs=kwargs)
    return Spawned(name, target, args, kwargs, report)
