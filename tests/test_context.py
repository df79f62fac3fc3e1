"""What a child can do with its context."""

import asyncio
import inspect
import re
import threading

import pytest
import structlog

import otpy
from otpy import Context, ExitKind, NotFound, Service, Shutdown, supervisor, thread
from otpy.children.callable.far_side import Facts, RemoteContext
from otpy.children.coroutine.context import AsyncContext
from otpy.reports import ChildTerminated, ShutdownError, StartFailed
from tests.helpers import HANG, Puppet, wait_until


def in_child(launch, function, **options):
    """Run *function(ctx)* in a child and return what it returns."""
    answer, done = [], threading.Event()

    def target(ctx):
        try:
            answer.append(function(ctx))
        finally:
            done.set()
        ctx.wait_stop()

    launch(supervisor("app", children=[thread(target, id="a", restart="temporary", **options)]))
    assert done.wait(HANG)
    return answer[0]


def test_who_am_i(launch):
    """id, path, incarnation, last exit, supervisor, and the same context from otpy.current()."""
    facts = in_child(
        launch,
        lambda ctx: (
            ctx.id,
            ctx.path,
            ctx.incarnation,
            ctx.last_exit,
            ctx.supervisor.path,
            otpy.current() is ctx,
            repr(ctx),
        ),
    )

    assert facts == ("a", "app/a", 1, None, "app", True, "<Context of app/a, incarnation 1>")


def test_the_thread_has_the_path_for_its_name(launch):
    """Every thread dump shows it."""
    assert in_child(launch, lambda ctx: threading.current_thread().name) == "app/a"


def test_the_replacement_knows_why_it_is_here(launch):
    """incarnation and last_exit."""
    puppet = Puppet()
    launch(supervisor("app", children=[puppet.spec("a")]))
    error = ValueError("boom")
    puppet.next().crash(error)
    life = puppet.next()

    assert (life.ctx.incarnation, life.ctx.last_exit.kind, life.ctx.last_exit.exception) == (
        2,
        ExitKind.CRASHED,
        error,
    )


def test_outside_of_a_child_there_is_no_context():
    """It says so."""
    with pytest.raises(NotFound, match="no child's code"):
        otpy.current()


def test_sleep_ends_early_when_asked_to_stop(launch):
    """An hour is over at once."""
    app = launch(supervisor("app", children=[thread(lambda ctx: ctx.sleep(3600), id="a")]))

    assert app.stop().stopped == ("app/a",)


def test_waits_are_checked(launch):
    """Negative times and NaN are refused; infinity is a long time."""

    def bad_waits(ctx):
        errors = []
        for seconds in (-1, float("nan")):
            try:
                ctx.sleep(seconds)
            except ValueError as error:
                errors.append(str(error))
        return errors, ctx.wait_stop(0)

    errors, asked = in_child(launch, bad_waits)

    assert errors == [
        f"timeout = {bad}: expected a number of seconds >= 0" for bad in ("-1", "nan")
    ]
    assert asked is False


def test_wait_stop_tells_that_it_was_asked(launch):
    """True, whenever it is called after the request."""
    answers = []

    def target(ctx):
        answers.append(ctx.wait_stop())
        answers.append(ctx.wait_stop(float("inf")))
        answers.append(ctx.running)

    launch(supervisor("app", children=[thread(target, id="a")])).stop()

    assert answers == [True, True, False]


def test_on_stop_is_called_once_on_a_helper_thread(launch):
    """In the order of registration; what one raises hurts no other, and is logged."""
    calls, up = [], threading.Event()

    def bad():
        raise ValueError("bad callback")

    def target(ctx):
        ctx.on_stop(lambda: calls.append(threading.current_thread().name))
        ctx.on_stop(bad)
        ctx.on_stop(lambda: calls.append(otpy.current().path))
        up.set()
        ctx.wait_stop()

    app = launch(supervisor("app", children=[thread(target, id="a")]))
    assert up.wait(HANG)
    with structlog.testing.capture_logs() as logs:
        app.stop()

    assert calls == ["app/a (on_stop)", "app/a"]
    assert [
        (entry["event"], entry["path"], "bad callback" in entry["exception"]) for entry in logs
    ] == [("on_stop_failed", "app/a", True)]


def test_on_stop_after_the_request_is_called_at_once(launch):
    """A callback that comes too late is not lost."""
    called = threading.Event()

    def target(ctx):
        ctx.wait_stop()
        ctx.on_stop(called.set)
        assert called.wait(HANG)

    app = launch(supervisor("app", children=[thread(target, id="a", shutdown=HANG)]))

    assert app.stop().stopped == ("app/a",)
    assert called.is_set()


def test_on_stop_wants_a_callable(launch):
    """Refused where it is said."""

    def target(ctx):
        with pytest.raises(TypeError, match="expected a callable"):
            ctx.on_stop(None)
        return True

    assert in_child(launch, target)


def test_a_child_is_ready_when_it_says_so(launch):
    """start waits for it; saying it again does nothing."""
    states = []

    def target(ctx):
        states.append(ctx.is_ready)
        ctx.ready()
        ctx.ready()
        states.append(ctx.is_ready)
        ctx.wait_stop()

    launch(supervisor("app", children=[thread(target, id="a", ready=True)]))

    assert states == [False, True]


def test_a_child_that_returns_before_it_is_ready_has_failed_to_start():
    """Also without an exception."""
    tree = supervisor("app", children=[thread(lambda ctx: None, id="a", ready=True)])

    with pytest.raises(
        otpy.StartError, match="app/a did not start: normal: it returned before it was ready"
    ):
        otpy.start(tree, log=False)


def test_the_log_is_bound(launch):
    """path and incarnation are in every line."""
    with structlog.testing.capture_logs() as logs:
        in_child(launch, lambda ctx: ctx.log.info("hello", more=1))

    assert logs == [
        {"event": "hello", "log_level": "info", "path": "app/a", "incarnation": 1, "more": 1}
    ]


@pytest.mark.parametrize(
    ("error", "kind", "restarted"),
    [
        (None, ExitKind.NORMAL, False),
        (SystemExit(), ExitKind.NORMAL, False),
        (SystemExit(0), ExitKind.NORMAL, False),
        (Shutdown("done"), ExitKind.SHUTDOWN, False),
        (SystemExit(3), ExitKind.CRASHED, True),
        (SystemExit("no"), ExitKind.CRASHED, True),
        (KeyboardInterrupt(), ExitKind.CRASHED, True),
        (GeneratorExit(), ExitKind.CRASHED, True),
        (ValueError(), ExitKind.CRASHED, True),
        (otpy.Killed(), ExitKind.KILLED, True),
    ],
)
def test_how_a_child_ends(launch, recorder, error, kind, restarted):
    """The kind of each end without a stop request; a transient child shows its class."""
    puppet = Puppet()
    app = launch(supervisor("app", children=[puppet.spec("a", restart="transient")]))
    life = puppet.next()
    life.leave() if error is None else life.crash(error)
    if restarted:
        assert puppet.next().ctx.last_exit.kind is kind
        assert recorder.wait_for(ChildTerminated, "app/a").reason.exception is error
    else:
        ended = wait_until(lambda: app.which_children()[0].last_exit, "the end of app/a")
        assert ended.kind is kind


def test_what_is_raised_after_a_stop_request_is_a_shutdown_with_an_error(launch, recorder):
    """It does not crash any more, and is reported all the same."""

    def fail(life):
        raise OSError("cannot flush")

    puppet = Puppet(when_asked=fail)
    app = launch(supervisor("app", children=[puppet.spec("a")]))
    puppet.next()
    app.stop()
    report = recorder.wait_for(ShutdownError, "app/a")

    assert (report.reason.kind, str(report.reason.exception)) == (ExitKind.SHUTDOWN, "cannot flush")


class Story(Service):
    """A service that writes down what happens to it."""

    def init(self, lines, fail_in=""):
        self.lines, self.fail_in, self.stopped = lines, fail_in, threading.Event()
        self.note("init")

    def note(self, what):
        self.lines.append(what)
        if what == self.fail_in:
            raise ValueError(what)

    def run(self):
        self.note("run")
        self.stopped.wait(HANG)

    def stop(self):
        self.note("stop")
        self.stopped.set()

    def terminate(self, reason):
        self.note(f"terminate {reason.kind.value}")


def test_the_life_of_a_service(launch):
    """init, run, stop, terminate; each incarnation is a fresh object."""
    lines = []
    launch(supervisor("app", children=[thread(Story, lines, id="a")])).stop()

    assert lines == ["init", "run", "stop", "terminate shutdown"]


def test_a_service_that_fails_in_run_is_terminated_and_restarted(launch, recorder):
    """terminate knows why; the crash is that of run."""
    lines = []
    launch(supervisor("app", intensity=1, children=[thread(Story, lines, "run", id="a")]))
    report = recorder.wait_for(ChildTerminated, "app/a", count=2)

    assert lines[:3] == ["init", "run", "terminate crashed"]
    assert str(report.reason.exception) == "run"


def test_a_service_that_fails_in_init_is_not_terminated(recorder):
    """It is a failed start."""
    lines = []
    tree = supervisor("app", children=[thread(Story, lines, "init", id="a")])

    with pytest.raises(otpy.StartError) as caught:
        otpy.start(tree, reports=recorder, log=False)
    assert lines == ["init"]
    assert str(caught.value.__cause__) == "init"
    assert recorder.wait_for(StartFailed, "app/a").reason.exception is caught.value.__cause__


def test_a_service_that_was_asked_during_init_is_stopped_after_it(launch):
    """stop is never called before init has returned."""
    lines, entered, go = [], threading.Event(), threading.Event()

    class Slow(Story):
        def init(self, lines):
            entered.set()
            go.wait(HANG)
            super().init(lines)

    app = launch(supervisor("app", children=[]))
    caller = threading.Thread(
        target=lambda: pytest.raises(
            otpy.StartError, app.start_child, thread(Slow, lines, id="a", shutdown=HANG)
        )
    )
    caller.start()
    assert entered.wait(HANG)
    stopper = threading.Thread(target=app.stop)
    stopper.start()
    go.set()
    stopper.join(HANG)
    caller.join(HANG)

    assert sorted(lines) == ["init", "run", "stop", "terminate shutdown"]


# Fenced


OF_KINDS = {"ask", "enter", "fence", "hangs_on", "pulse", "running", "saved"}
"""What the kinds of children do with a context; and ``running``, which stays False."""

PUBLIC = [name for name in vars(Context) if name[0] != "_" and name not in OF_KINDS]
"""The members that children use, but ``running``."""

USES = {
    # member: with which arguments it is called; the others are attributes
    "check_in": [(), (1,)],
    "on_stop": [(print,)],
    "ready": [()],
    "sleep": [(0,)],
    "wait_stop": [(), (0,)],
}


def use(ctx, name, args):
    """Use *ctx* as its child does."""
    value = getattr(ctx, name)
    result = value(*args) if args is not None else value
    if inspect.iscoroutine(result):
        asyncio.run(result)


FACTS = {
    "path": "app/a",
    "incarnation": 1,
    "ready": False,
    "heartbeat": None,
    "snapshot": None,
    "state": None,
}

KINDS = {
    # kind of context: how one is made for a child that was born so
    Context: lambda birth: Context(birth, lambda _: None),
    AsyncContext: lambda birth: AsyncContext(birth, lambda _: None),
    RemoteContext: lambda _: RemoteContext(
        Facts(**FACTS, last_exit=None, max_message_size=1 << 20, allow_pickle=False), None
    ),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_use_of_a_fenced_context_raises_fenced(kind, launch):
    """All members, whatever the kind of child; only ``running`` can still be looked at."""
    ctx = KINDS[kind](in_child(launch, lambda ctx: ctx._birth))
    ctx.ask()
    ctx.fence()

    assert not ctx.running
    for name in PUBLIC:
        for args in USES.get(name, [None]):
            with pytest.raises(otpy.Fenced, match="app/a"):
                use(ctx, name, args)


def parameters(function):
    """Return name, kind and whether there is a default, of each parameter."""
    found = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default is one.empty) for one in found]


def errors(member):
    """Return the names of the exceptions in the docstring of *member*."""
    return set(
        re.findall(
            r"^\s+(\w+(?:, \w+)*): ", inspect.getdoc(member).partition("Raises:")[2], re.MULTILINE
        )
    )


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("kind", [AsyncContext, RemoteContext], ids=lambda kind: kind.__name__)
def test_all_kinds_of_contexts_have_the_same_members(kind, name):
    """Each method and property: of the same type, with the same parameters, described, and
    with at least the errors that ``Context`` names.
    """
    expected, found = (inspect.getattr_static(one, name, None) for one in (Context, kind))

    assert type(found) is type(expected)
    if inspect.isfunction(expected):
        assert parameters(found) == parameters(expected)
        waits = kind is AsyncContext and name in {"sleep", "wait_stop"}
        assert inspect.iscoroutinefunction(found) == waits
    assert inspect.getdoc(found)
    assert errors(found) >= errors(expected)
