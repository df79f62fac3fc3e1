"""A kind of child that breaks its contract costs that child, and no other."""

import pytest

import otpy
from otpy import (
    ChildSpec,
    ChildState,
    supervisor,
    thread,
)
from otpy.core.messages import ChildExited, ChildStarted, StopSupervisor
from otpy.reports import (
    ChildTerminated,
    ExitKind,
    ExitReason,
    Progress,
    ShutdownError,
    StrayMessage,
    Unstopped,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def idle(ctx):
    ctx.wait_stop()


def core_of(handle):
    return handle._tree.directory[handle.path]


STOPPED = ExitReason(ExitKind.SHUTDOWN)


class Foreign:
    """A kind of child that is not otpy's; *breaks* names the method that raises *error*."""

    breaks, error = "", None
    alive = False
    ends_when_asked = True

    def __init__(self, birth):
        self.birth = birth
        self._maybe_break("__init__")

    def _maybe_break(self, method):
        if method == self.breaks and self.birth.incarnation == 1:
            raise self.error

    def start(self, deliver):
        self._maybe_break("start")
        self.deliver = deliver
        deliver(ChildStarted(self.birth.ref))

    def stop(self):
        self._maybe_break("stop")
        if self.ends_when_asked:
            self.end()

    def kill(self, grace):
        self._maybe_break("kill")
        return False

    def abandon(self):
        self._maybe_break("abandon")

    def detach(self):
        self._maybe_break("detach")

    def stack(self):
        self._maybe_break("stack")
        return ""

    def pulse(self):
        self._maybe_break("pulse")
        return 0.0, 0.0

    @property
    def state(self):
        self._maybe_break("state")

    def end(self, reason=STOPPED):
        self.deliver(ChildExited(self.birth.ref, reason))


def foreign(method, error, **options):
    own = {
        "breaks": method,
        "error": error,
        "ends_when_asked": method not in ("kill", "abandon", "stack"),
    }
    kind = type("Foreign", (Foreign,), own)
    return ChildSpec(id="x", start=kind, shutdown=0.01, **options)


ERRORS = [
    ZeroDivisionError("broken"),
    SystemExit("broken"),
    KeyboardInterrupt("broken"),
    MemoryError("broken"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["stop", "kill", "abandon", "state", "stack"])
def test_a_kind_that_raises_when_it_is_stopped(method, error, launch, recorder):
    """The call is served, the sibling lives on, and if the child did not end it is named."""
    app = launch(supervisor("app", children=[thread(idle, id="a"), foreign(method, error)]))
    app.terminate_child("x")

    kind = Unstopped if method in ("abandon", "stack") else ShutdownError
    assert recorder.wait_for(kind, "app/x").reason.exception is (
        None if method == "stack" else error
    )
    assert [(one.id, one.incarnation, one.state.value) for one in app.which_children()] == [
        ("a", 1, "running"),
        ("x", 1, "undefined"),
    ]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["pulse", "__init__", "start"])
def test_a_kind_that_raises_while_it_runs_or_starts(method, error, launch, recorder):
    """It is a crash of this child, reported once; the sibling lives on, and the child is replaced."""
    app = launch(supervisor("app", children=[thread(idle, id="a")], intensity=5))
    heartbeat = 0.01 if method == "pulse" else None
    if method == "pulse":
        app.start_child(foreign(method, error, heartbeat=heartbeat))
        assert recorder.wait_for(ChildTerminated, "app/x").reason.exception is error
        recorder.wait_for(Progress, "app/x", 2)
    else:
        with pytest.raises(otpy.StartError) as caught:
            app.start_child(foreign(method, error))
        assert caught.value.__cause__ is error

    assert app.which_children()[0].incarnation == 1


def test_a_kind_that_raises_when_it_is_detached(launch, recorder):
    """Its crash is reported, and the sibling runs on."""
    error = ZeroDivisionError("broken")
    app = otpy.start(
        supervisor("app", children=[foreign("detach", error)]), reports=recorder, log=False
    )
    app.detach()

    assert recorder.wait_for(ChildTerminated, "app/x").reason.exception is error


def test_a_kind_that_runs_on_when_it_has_broken(launch, recorder):
    """What could not be ended is named and counted, and not taken for ended."""
    spec = foreign("stop", ZeroDivisionError("broken"))
    spec.start.alive = True
    app = launch(supervisor("app", children=[spec]))
    app.terminate_child("x")

    assert isinstance(recorder.wait_for(Unstopped, "app/x").reason.exception, ZeroDivisionError)
    assert [one.path for one in app.stop().unstopped] == ["app/x"]


def test_a_kind_whose_looks_deceive(launch, recorder):
    """A stray that cannot say whether it lives is not taken for dead, and the stop report comes all the same."""

    class Sphinx(Foreign):
        @property
        def alive(self):
            raise ZeroDivisionError

    app = launch(supervisor("app", children=[ChildSpec(id="x", start=Sphinx, shutdown=0.01)]))
    Sphinx.stop = lambda self: None
    Sphinx.stack = lambda self: 1 / 0

    assert [one.path for one in app.stop().unstopped] == ["app/x"]


def test_news_that_are_not_a_kinds_own(launch, recorder):
    """A message that a kind sends twice, after its end, or about a sibling changes nothing."""
    made = []

    class Liar(Foreign):
        def __init__(self, birth):
            super().__init__(birth)
            made.append(self)

    sibling = thread(idle, id="a")
    app = launch(
        supervisor("app", children=[sibling, ChildSpec(id="x", start=Liar, restart="transient")])
    )
    liar, crash = made[0], ExitReason(ExitKind.CRASHED)
    other = next(iter(core_of(app)._children))
    for lie in (ChildExited(other, crash), StopSupervisor(), "garbage", ChildStarted(other)):
        liar.deliver(lie)
        assert (
            recorder.wait_for(StrayMessage, "app/x", len(recorder.of(StrayMessage)) or 1).item
            is not None
        )
    for reason in (crash, crash, ExitReason(ExitKind.NORMAL)):
        liar.end(reason)
    recorder.wait_for(Progress, "app/x", 2)
    liar.end(crash)
    liar.deliver(ChildStarted(liar.birth.ref))

    assert [(one.id, one.incarnation, one.state.value) for one in app.which_children()] == [
        ("a", 1, "running"),
        ("x", 2, "running"),
    ]
    assert len(recorder.of(StrayMessage)) == 4
    assert len(recorder.of(ChildTerminated)) == 1


# Calls on a supervisor's own thread


def test_a_call_on_a_supervisors_own_thread_is_refused(launch, recorder):
    """A finalizer may run on any thread; the call would wait for the thread that makes it."""
    refused = []

    class Caller(Foreign):
        def start(self, deliver):
            super().start(deliver)
            for call in (app.which_children, app.stop, app.wait, app.snapshot, app.detach):
                try:
                    call()
                except otpy.WouldDeadlock as error:
                    refused.append(error.path)

    app = launch(supervisor("app"))
    app.start_child(ChildSpec(id="x", start=Caller))

    assert refused == ["app"] * 5
    assert app.which_children()[0].state is ChildState.RUNNING


def test_supervisors_are_kept_apart_from_other_threads(launch):
    """Their numbers are noted while they run, and not longer."""
    from otpy.runtime.tree import SUPERVISING

    app = launch(supervisor("app", children=[supervisor("s")]))
    numbers = {core._agenda.ident for core in app._tree.directory.values()}
    assert numbers <= SUPERVISING
    app.stop()

    assert not numbers & SUPERVISING
