"""How conformance tests look at a supervisor, and how they hold one in the middle of its work.

otpy's supervisors never block; OTP's do, in every start. What becomes of the messages that came meanwhile is a rule all
the same. It can be seen if a test holds the supervisor's thread, by a start that breaks its contract and waits.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from otpy import ChildSpec, Context, StartError, Supervisor, thread
from otpy.core import messages
from otpy.runtime.waiting import Reply
from tests.helpers import HANG, wait_until


def look(app: Supervisor) -> list[str]:
    """Return the children in start order, as lines like "a running 2": id, state, incarnation."""
    return [f"{child.id} {child.state.value} {child.incarnation}" for child in app.which_children()]


def wait_for_look(app: Supervisor, *expected: str) -> None:
    """Wait until the children look like this; for ends that nothing announces."""
    with contextlib.suppress(AssertionError):
        wait_until(lambda: look(app) == list(expected))
    assert look(app) == list(expected)


def stays_up(app: Supervisor, *expected: str) -> None:
    """Assert that the children come to look like this, and that the supervisor then lives on.

    The proof is a later event: one more child comes and crashes for good, before the children are looked at again.
    """
    wait_for_look(app, *expected)
    release = threading.Event()

    def crash_later(ctx: Context) -> None:
        release.wait(HANG)
        raise RuntimeError("later")

    app.start_child(thread(crash_later, restart="temporary"))
    assert look(app) == [*expected, "crash_later running 1"]
    release.set()
    wait_for_look(app, *expected)


def join(path: str) -> None:
    """Wait until the child's thread has ended; its exit is on the supervisor's queue then."""
    for one in threading.enumerate():
        if one.name == path:
            one.join(HANG)


def post(app: Supervisor, kind: Callable[..., messages.Call], **fields: Any) -> Callable[[], Any]:
    """Put a call on the supervisor's queue; return a function that waits for its answer."""
    reply = Reply()
    app._core().mailbox.put(kind(reply=reply, **fields))
    return functools.partial(reply.wait, HANG, app.path)


class Hurdle:
    """A start that, while the hurdle is up, holds the supervisor's thread until the test says how it goes on."""

    def __init__(self, *, is_up: bool = False) -> None:
        self.is_up = is_up
        self._arrived: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._verdicts: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def before(self, spec: ChildSpec) -> ChildSpec:
        """Return *spec* with this hurdle before each of its starts."""
        return attrs.evolve(spec, start=functools.partial(self._start, spec.start))

    def arrival(self) -> str:
        """Wait until a start is held, and return the child's id."""
        return self._arrived.get(timeout=HANG)

    def fail(self) -> None:
        """Let the start fail that is held, or that comes next."""
        self._verdicts.put(RuntimeError("hurdle"))

    def let_pass(self) -> None:
        """Let the start go on that is held, or that comes next."""
        self._verdicts.put(None)

    def _start(self, start: Callable[[Any], Any], birth: Any) -> Any:
        if self.is_up:
            self._arrived.put(birth.spec.id)
            failure = self._verdicts.get(timeout=HANG)
            if failure is not None:
                raise failure
        return start(birth)


@contextlib.contextmanager
def held(app: Supervisor) -> Iterator[None]:
    """Hold the supervisor's thread; what comes during the block it reads afterwards, in order."""
    hurdle = Hurdle(is_up=True)
    answer = post(
        app, messages.StartChild, spec=hurdle.before(thread(lambda ctx: None, id="hurdle"))
    )
    hurdle.arrival()
    try:
        yield
    finally:
        hurdle.fail()
        with pytest.raises(StartError):
            answer()
