"""How a task is cancelled, also where CPython 3.11 would lose that.

``cancel`` must be called on the loop of the task.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from typing import Any

CLEAN_UP = 0.5
"""How many seconds tasks that were left behind have when they are cancelled."""

WAIT_FOR = asyncio.wait_for.__code__ if sys.version_info < (3, 12) else None
"""``wait_for`` of CPython 3.11, which loses cancellations; None: a newer Python."""

TRIES = 1000
"""How often a task that loses its cancellations there is cancelled.

Each try costs the task a turn of its loop.
"""


def cancel(task: asyncio.Task[Any], tries: int = TRIES) -> None:
    """Cancel *task*, and cancel it again if ``asyncio.wait_for`` loses that.

    The cancellation is lost if the future that ``wait_for`` awaits gets done
    afterwards, and not by a cancellation: then ``wait_for`` has returned its result.
    """
    awaited = _awaited_by_wait_for(task) if WAIT_FOR is not None else None
    task.cancel()
    if awaited is not None and tries:
        # until then the task has made its step
        task.get_loop().call_soon(_cancel_again, task, awaited, tries - 1)


def _cancel_again(task: asyncio.Task[Any], awaited: asyncio.Future[Any], tries: int) -> None:
    if awaited.done() and not awaited.cancelled() and not task.done():
        cancel(task, tries)


def _awaited_by_wait_for(task: asyncio.Task[Any]) -> asyncio.Future[Any] | None:
    """Return the future that *task* awaits in ``wait_for``; None: it is elsewhere."""
    waiting: Any = task.get_coro()
    while inspect.iscoroutine(inner := getattr(waiting, "cr_await", None)):
        waiting = inner
    frame = getattr(waiting, "cr_frame", None)
    found = frame.f_locals.get("fut") if frame is not None and frame.f_code is WAIT_FOR else None
    return found if isinstance(found, asyncio.Future) else None
