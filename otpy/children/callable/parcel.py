"""The parcel for the process of a callable: what is pickled for its start.

The process unpickles two things: the facts about its parent process that
multiprocessing wants (``preparation_of``), and the job with its own facts. All of this runs on the
keeper's thread; ``check_pickling`` runs where the spec is made.

Exit reasons and states travel through the parent process. A state stays as it came. An
exception that is sealed stays sealed: only the next incarnation opens it, if it asks.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from collections.abc import Callable
from multiprocessing import get_start_method, process, reduction, spawn, util
from multiprocessing.context import set_spawning_popen
from typing import Any

import attrs

from otpy.exceptions import RemoteError, SpecError, qualified_name, show, text_of, traceback_of
from otpy.reports import ExitReason
from otpy.values import Value, value


@value
class Job(Value):
    """What a process runs, and what it may send back.

    Attributes:
        function, args: The callable, and its arguments after ``ctx``.
        max_message_size: The most bytes that a message may have.
        allow_pickle: Whether its exceptions are pickled.
    """

    function: Callable[..., object]
    args: tuple[Any, ...]
    max_message_size: int
    allow_pickle: bool


@value
class Saved(Value):
    """A state that a child has saved, as it came; only its replacement unpickles it."""

    pickled: bytes = attrs.field(repr=lambda pickled: f"<{len(pickled)} bytes>")


class Parcel:
    """Packs values for a new process, and collects the descriptors that it inherits.

    While ``pack`` runs, the parcel stands in for the Popen of multiprocessing: queues
    and locks give their descriptors to that object.
    """

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def pack(self, value: object) -> bytes:
        """Pickle *value*.

        Raises:
            Exception: Its pickling may raise anything.
        """
        content = io.BytesIO()
        set_spawning_popen(self)  # type: ignore[arg-type]  # it is this thread's
        try:
            reduction.ForkingPickler(content, pickle.HIGHEST_PROTOCOL).dump(value)
        finally:
            set_spawning_popen(None)
        return content.getvalue()

    def duplicate_for_child(self, descriptor: int) -> int:
        """Let the process inherit *descriptor*, under the same number."""
        self.descriptors.append(descriptor)
        return descriptor

    class DupFd:
        """A descriptor as it arrives in the process; the name is multiprocessing's."""

        def __init__(self, descriptor: int) -> None:
            self.descriptor = descriptor

        def detach(self) -> int:
            return self.descriptor


def check_pickling(path: str, field: str, value: object, expected: str) -> None:
    """Pickle *value* once, to find out whether that works.

    Raises:
        SpecError: It cannot be pickled.
    """
    try:
        Parcel().pack(value)
    except Exception as error:
        raise SpecError(path, field, value, f"{expected} ({show(error)})") from error


def preparation_of(name: str, work: bytes) -> dict[str, Any]:
    """Return what multiprocessing wants a new process to know about this one.

    It is what multiprocessing's ``get_preparation_data`` returns, with two differences.
    The working directory is missing: the process inherits it, and it may have been
    removed. The main module is named only if *work* refers to it: to run that module
    again may take long.
    """
    # A main module without ``if __name__ == "__main__"`` would start its tree again in
    # each process, for ever. This raises in such a process.
    spawn._check_not_importing_main()  # type: ignore[attr-defined]
    facts: dict[str, Any] = {
        "name": name,
        "authkey": process.current_process().authkey,
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]
        "sys_path": [entry or process.ORIGINAL_DIR or "" for entry in sys.path],  # type: ignore[attr-defined]
        "sys_argv": sys.argv,
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]
    }
    # To ask for the default method would fix it, in this process as well.
    if (method := get_start_method(allow_none=True)) is not None:
        facts["start_method"] = method
    if util._logger is not None:  # type: ignore[attr-defined]
        facts["log_level"] = util._logger.getEffectiveLevel()  # type: ignore[attr-defined]
    if b"__main__" in work or b"__mp_main__" in work:
        main = sys.modules["__main__"]
        if (module := getattr(main.__spec__, "name", None)) is not None:
            facts["init_main_from_name"] = module
        elif (file := getattr(main, "__file__", None)) is not None:
            path = os.path.join(facts["orig_dir"] or "", file)  # noqa: PTH118
            facts["init_main_from_path"] = os.path.normpath(path)
    return facts


def pickled_exit(reason: ExitReason | None) -> bytes | None:
    """Pickle why the incarnation before has ended.

    A RemoteError stands in for an exception that cannot be pickled.
    """
    if reason is None:
        return None
    raised, detail = reason.raised, reason.detail
    try:
        return pickle.dumps(ExitReason(reason.kind, raised, detail))
    except Exception:
        if isinstance(raised, BaseException):
            raised = RemoteError(qualified_name(raised), text_of(raised), traceback_of(raised))
        return pickle.dumps(ExitReason(reason.kind, raised, show(detail) if detail else None))
