"""Children made of objects that know nothing of otpy."""

import functools
import queue
import threading

import attrs
import pytest
import structlog

import otpy
from otpy import ExitKind, Service, SpecError, adopt, supervisor, thread
from otpy.reports import ChildTerminated
from tests.helpers import HANG, Puppet


class Worker(threading.Thread):
    """As people write them; says where its methods run."""

    def __init__(self, news):
        super().__init__(name="worker")
        self.news, self.closed = news, threading.Event()

    def say(self, what):
        self.news.put((what, self, threading.current_thread().name))

    def run(self):
        self.say("run")
        self.closed.wait(HANG)

    def stop(self):
        self.say("stop")
        self.closed.set()


@pytest.fixture
def news():
    """What workers say: (what, who, in which thread)."""
    return queue.Queue()


def hear(news):
    return news.get(timeout=HANG)


def adopted(factory, stop=None, **options):
    return thread(adopt(factory, stop), **{"id": "w", "shutdown": HANG, **options})


def test_it_runs_in_the_childs_thread_and_is_stopped_on_a_helper(launch, news):
    """Nothing in the class has to change."""
    app = launch(supervisor("app", children=[adopted(functools.partial(Worker, news))]))
    what, worker, where = hear(news)
    report = app.stop()

    assert (what, where) == ("run", "app/w")
    assert hear(news) == ("stop", worker, "app/w (on_stop)")
    assert report.stopped == ("app/w",)
    assert news.empty()


def test_a_thread_object_is_never_started(launch, news):
    """What belongs to a started thread is of no use: the name, is_alive, join."""
    launch(supervisor("app", children=[adopted(functools.partial(Worker, news))]))
    _, worker, _ = hear(news)

    assert (worker.name, worker.is_alive(), worker.ident) == ("worker", False, None)
    with pytest.raises(RuntimeError, match="before it is started"):
        worker.join()


def test_each_incarnation_is_a_fresh_object(launch, recorder, news):
    """A crash of run is the crash of the child; the object that crashed is not stopped, nor run again."""
    error = ValueError("out of order")

    class Brittle(Worker):
        def run(self):
            super().run()
            if otpy.current().running:
                raise error

    app = launch(supervisor("app", children=[adopted(functools.partial(Brittle, news))]))
    _, first, _ = hear(news)
    first.closed.set()
    report = recorder.wait_for(ChildTerminated, "app/w")
    _, second, _ = hear(news)
    app.stop()

    assert report.reason.exception is error
    assert second is not first
    assert hear(news)[:2] == ("stop", second)
    assert news.empty()


def test_a_thread_made_of_a_function(launch, news):
    """threading.Thread itself has a run, too."""
    launch(
        supervisor(
            "app",
            children=[
                adopted(lambda: threading.Thread(target=news.put, args=[1]), restart="temporary")
            ],
        )
    )

    assert hear(news) == 1


def test_how_to_stop_can_be_said(launch):
    """For objects whose stop has another name, or none."""
    app = launch(
        supervisor(
            "app", children=[adopted(lambda: threading.Timer(3600, print), threading.Timer.cancel)]
        )
    )

    assert app.stop().stopped == ("app/w",)


def test_what_is_said_replaces_the_objects_own_stop(launch, news):
    """Only one of the two is called."""
    app = launch(
        supervisor(
            "app", children=[adopted(lambda: Worker(news), lambda worker: worker.closed.set())]
        )
    )
    hear(news)

    assert app.stop().stopped == ("app/w",)
    assert news.empty()


def test_an_object_without_a_stop(launch):
    """It has the context of the child as all code there."""

    class Plain:
        def run(self):
            otpy.current().wait_stop()

    assert launch(supervisor("app", children=[adopted(Plain)])).stop().stopped == ("app/w",)


def test_the_factory_has_the_context(launch, news):
    """So state can be handed over to an object that knows nothing of it."""

    class Counter(Worker):
        def __init__(self, news, count):
            super().__init__(news)
            self.count = count

        def run(self):
            self.say(self.count)
            otpy.current().check_in(self.count + 1)
            raise RuntimeError

    launch(
        supervisor(
            "app", intensity=2, children=[adopted(lambda: Counter(news, otpy.current().state or 0))]
        )
    ).wait()

    assert [hear(news)[0] for _ in range(3)] == [0, 1, 2]


def test_a_stop_that_blocks_delays_no_sibling(launch, news):
    """A sibling that crashes meanwhile is replaced; the child ends when its stop lets it."""
    release = threading.Event()

    class Slow(Worker):
        def stop(self):
            self.say("stop")
            release.wait(HANG)
            self.closed.set()

    sibling = Puppet()
    app = launch(supervisor("app", children=[adopted(lambda: Slow(news)), sibling.spec("sibling")]))
    hear(news)
    caller = threading.Thread(target=app.terminate_child, args=["w"])
    caller.start()
    assert hear(news)[0] == "stop"
    sibling.next().crash()

    assert sibling.next().incarnation == 2
    assert caller.is_alive()
    release.set()
    caller.join(HANG)
    assert app.which_children()[0].last_exit.kind is ExitKind.SHUTDOWN


def test_a_stop_that_raises_is_logged(launch, news):
    """As what any on_stop callback raises: such as that of a thread that wants to wait for itself."""

    class Joining(Worker):
        def stop(self):
            super().stop()
            self.join()

    app = launch(supervisor("app", children=[adopted(lambda: Joining(news))]))
    hear(news)
    with structlog.testing.capture_logs() as logs:
        report = app.stop()

    assert report.stopped == ("app/w",)
    assert [(entry["event"], entry["path"]) for entry in logs] == [("on_stop_failed", "app/w")]
    assert "cannot join thread before it is started" in logs[0]["exception"]


def test_a_stop_that_overtakes_the_start(launch, news):
    """The object is stopped, so that it can let go of what it has; it is not run any more."""

    def slow_factory():
        news.put("made")
        otpy.current().wait_stop()
        return Worker(news)

    app = launch(supervisor("app", children=[adopted(slow_factory)]))
    assert hear(news) == "made"

    assert app.stop().stopped == ("app/w",)
    assert hear(news)[0] == "stop"
    assert news.empty()


def test_a_stop_that_waits_for_a_run_that_does_not_come_is_named(launch, news):
    """As that of a socketserver: the stop has overtaken the start, so its helper thread waits for ever."""
    release = threading.Event()

    class Shuts(Worker):
        def stop(self):
            release.wait(HANG)  # stands for: until run has ended

    def slow_factory():
        news.put("made")
        otpy.current().wait_stop()
        return Shuts(news)

    app = launch(supervisor("app", children=[adopted(slow_factory)]), flush=0.0)
    assert hear(news) == "made"
    report = app.stop()
    release.set()

    assert report.stopped == ("app/w",)
    assert report.handlers == ("app/w (on_stop)",)


def test_it_is_ready_when_it_is_made(launch, news):
    """With ready=True: the next child starts after the factory has returned."""

    def factory():
        news.put("made")
        return Worker(news)

    def successor(ctx):
        news.put("next")
        ctx.wait_stop()

    launch(supervisor("app", children=[adopted(factory, ready=True), thread(successor)]))
    heard = [hear(news) for _ in range(3)]

    assert heard.index("made") < heard.index("next")


def test_a_factory_that_fails_is_a_failed_start():
    """With ready=True; otherwise it is a crash."""

    def factory():
        raise OSError("no such device")

    with pytest.raises(otpy.StartError, match="app/w") as caught:
        otpy.start(supervisor("app", children=[adopted(factory, ready=True)]), log=False)
    assert str(caught.value.__cause__) == "no such device"


@attrs.define
class Odd:
    """An object with attributes instead of methods."""

    run: object = None
    stop: object = None


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, "made 3: expected an object with a run method"),
        (Odd(), "made Odd(run=None, stop=None): expected an object with a run method"),
        (Odd(run=3), "Odd(run=3, stop=None).run is 3: expected a method"),
        (Odd(run=print, stop=3), "stop=3).stop is 3: expected a method"),
    ],
)
def test_what_cannot_be_adopted_is_a_crash_that_says_so(made, message):
    """It is found when the factory has returned; with ready=True that is a failed start."""
    with pytest.raises(otpy.StartError) as caught:
        otpy.start(supervisor("app", children=[adopted(lambda: made, ready=True)]), log=False)
    assert isinstance(caught.value.__cause__, TypeError)
    assert message in str(caught.value.__cause__)


def test_an_attribute_called_stop_is_no_hindrance_if_it_is_said_how_to_stop(launch):
    """Such as an event."""
    stop = threading.Event()
    app = launch(
        supervisor(
            "app", children=[adopted(lambda: Odd(stop.wait, stop), lambda odd: odd.stop.set())]
        )
    )

    assert app.stop().stopped == ("app/w",)


class Runs:
    def run(self): ...


class NeedsArguments(Runs):
    def __init__(self, host): ...


class Modern(Service):
    def run(self): ...


async def coroutine():
    return Runs()


@pytest.mark.parametrize(
    ("arguments", "field", "expected"),
    [
        ((None,), "factory", "a callable that makes a fresh object each time, such as its class"),
        ((Runs(),), "factory", "a callable that makes a fresh object each time, such as its class"),
        ((coroutine,), "factory", "a plain function: calling an async function would run nothing"),
        ((int,), "factory", "a class with a run method"),
        ((Modern,), "factory", "another class: thread() takes a Service as it is"),
        (
            (NeedsArguments,),
            "factory",
            "a callable without arguments; bind them with functools.partial (missing a",
        ),
        ((Runs, "close"), "stop", "a callable that takes the object, or None"),
        (
            (Runs, coroutine),
            "stop",
            "a plain function: calling an async function would run nothing",
        ),
        (
            (Runs, lambda: None),
            "stop",
            "a callable that takes the object, or None (too many positional arguments)",
        ),
    ],
)
def test_what_is_refused_at_once(arguments, field, expected):
    """Before there is a tree."""
    with pytest.raises(SpecError) as caught:
        adopt(*arguments)
    assert (caught.value.path, caught.value.field, caught.value.value) == (
        "<adopt>",
        field,
        arguments[field == "stop"],
    )
    assert caught.value.expected.startswith(expected)


def test_it_is_a_value():
    """Equal when made of equal parts, printable, frozen; so specs made of it can be compared, too."""
    target = adopt(Runs, Runs.run)

    assert target == adopt(Runs, Runs.run) != adopt(Runs)
    assert hash(target) == hash(adopt(Runs, Runs.run))
    assert thread(target) == thread(adopt(Runs, Runs.run))
    assert repr(adopt(Runs)) == f"Adopted(factory={Runs!r}, stop=None)"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        target.stop = None


def test_the_id_is_by_default_the_name_of_the_factory():
    """If it has one."""

    def make_worker():
        return Runs()

    assert thread(adopt(Runs)).id == "Runs"
    assert thread(adopt(make_worker)).id == "make_worker"
    for nameless in (lambda: Runs(), functools.partial(NeedsArguments, "localhost")):
        with pytest.raises(SpecError, match="id = ''"):
            thread(adopt(nameless))
        assert thread(adopt(nameless), id="w").id == "w"
