"""Handlers, callbacks and targets that would run nothing: refused when given, or
reported when called.

Rule: otpy calls what it is given and awaits nothing. Whatever is accepted has an effect, or its failure is reported.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import queue
import sys
import threading
import unittest.mock

import pytest

import otpy
from otpy import (
    adopt,
    coroutine,
    dynamic_supervisor,
    periodic,
    process,
    registry,
    start,
    supervisor,
    thread,
)
from otpy.aio import AsyncSupervisor
from otpy.reports import ChildTerminated
from otpy.taskgraph import TaskGraph
from tests import callees
from tests.helpers import HANG, wait_until
from tests.seams.kit import python


def idle(ctx):
    ctx.wait_stop()


async def a_coroutine(*args):
    raise AssertionError("nothing awaits this")


async def an_async_generator(*args):
    yield args


def a_generator(*args):
    yield args


class AsyncCall:
    async def __call__(self, *args):
        raise AssertionError("nothing awaits this")


class AsyncMethod:
    async def method(self, *args):
        raise AssertionError("nothing awaits this")


class AClass:
    def __init__(self, *args):
        pass


RUN_NOTHING = {
    "async function": a_coroutine,
    "async generator": an_async_generator,
    "generator": a_generator,
    "partial": functools.partial(a_coroutine, 1),
    "partial of a partial": functools.partial(functools.partial(AsyncCall()), 1),
    "async __call__": AsyncCall(),
    "async method": AsyncMethod().method,
    "class": AClass,
    "partial of a class": functools.partial(AClass, 1),
}


def on_stop(handler):
    """Register it in a child, and raise what that raises."""
    refused = queue.SimpleQueue()

    def child(ctx):
        try:
            ctx.on_stop(handler)
        except TypeError as error:
            refused.put(error)
        else:
            refused.put(None)

    with start(supervisor("app", children=[thread(child, restart="temporary")]), log=False):
        error = refused.get(timeout=HANG)
    if error is not None:
        raise error


def subscribe(handler):
    with start(supervisor("app"), log=False) as app:
        app.subscribe(handler)


def subscribe_async(handler):
    async def main():
        with start(supervisor("app"), log=False) as app:
            await AsyncSupervisor(app).subscribe(handler)

    asyncio.run(main())


def subscribe_to_registry(handler):
    with registry.ThreadRegistry() as reg:
        reg.subscribe(handler)


PLACES = {
    # where a handler is given: (how, how many arguments it gets)
    "start(reports=)": (
        lambda handler: start(supervisor("app"), log=False, reports=handler).stop(),
        1,
    ),
    "start(on_escalation=)": (
        lambda handler: start(supervisor("app"), log=False, on_escalation=handler).stop(),
        1,
    ),
    "supervisor(on_escalation=)": (lambda handler: supervisor("app", on_escalation=handler), 1),
    "dynamic_supervisor(on_escalation=)": (
        lambda handler: dynamic_supervisor("app", on_escalation=handler),
        1,
    ),
    "subscribe": (subscribe, 1),
    "aio subscribe": (subscribe_async, 1),
    "registry.subscribe": (subscribe_to_registry, 1),
    "ctx.on_stop": (on_stop, 0),
    "graph.on_start": (lambda handler: TaskGraph().on_start(handler), 1),
    "graph.on_task_start": (lambda handler: TaskGraph().on_task_start(handler), 1),
    "graph.on_task_run": (lambda handler: TaskGraph().on_task_run(handler), 2),
    "graph.on_task_done": (lambda handler: TaskGraph().on_task_done(handler), 2),
    "graph.on_done": (lambda handler: TaskGraph().on_done(handler), 1),
    "json_reports": (otpy.json_reports, 2),
    "stdout": (lambda handler: process("true", stdout=handler), 1),
    "stderr": (lambda handler: process("true", stderr=handler), 1),
    "adopt(stop=)": (lambda handler: adopt(threading.Thread, stop=handler), 1),
}


@pytest.mark.parametrize("handler", RUN_NOTHING.values(), ids=RUN_NOTHING)
@pytest.mark.parametrize("place", PLACES)
def test_a_handler_whose_call_would_run_nothing_is_refused_where_it_is_given(place, handler):
    """An async function, a generator or a class as a handler: refused in every place,
    in whatever wrapping.
    """
    give, _ = PLACES[place]

    with pytest.raises(
        (otpy.SpecError, TypeError), match=r"calling .* would run nothing|would only make an object"
    ):
        give(handler)


@pytest.mark.parametrize("place", PLACES)
def test_a_handler_with_a_wrong_signature_is_refused_where_it_is_given(place):
    """As the signature of a target is: not when the page is due."""
    give, count = PLACES[place]
    right, few, many = (
        eval(f"lambda {', '.join('abc'[:n])}: None") for n in (count, max(0, count - 1), count + 1)
    )

    give(right)
    give(lambda *args: None)
    give(lambda *args, **options: None)
    for wrong in [many] if count == 0 else [few, many]:
        with pytest.raises((otpy.SpecError, TypeError), match="argument"):
            give(wrong)


@pytest.mark.parametrize("place", [place for place in PLACES if PLACES[place][1] == 1])
def test_a_builtin_without_a_signature_is_accepted(place):
    """A callable without a signature gets the benefit of the doubt, and so does a
    print.
    """
    give, _ = PLACES[place]

    give(print)
    give(max)
    give([].append)


@pytest.mark.parametrize("place", [place for place in PLACES if PLACES[place][1] == 1])
def test_the_signature_is_that_of_the_wrapper_not_of_what_it_wraps(place):
    """A decorator may call what it wraps with other arguments; ``functools.wraps`` says
    nothing about these.
    """
    give, _ = PLACES[place]

    def page():
        pass

    @functools.wraps(page)
    def takes_a_report(report):
        page()

    def log(report):
        pass

    @functools.wraps(log)
    def takes_nothing():
        log(None)

    give(takes_a_report)
    with pytest.raises(otpy.SpecError, match="too many positional arguments"):
        give(takes_nothing)


def test_a_callback_of_a_graph_is_checked_with_what_is_passed_on():
    """Its further arguments count, by position and by name."""
    graph = TaskGraph()
    graph.on_done(lambda summary, sink, *, extra: None, 1, extra=2)
    with pytest.raises(
        otpy.SpecError,
        match=r"tasks: on_done = .*\(missing a required (keyword-only )?argument: 'extra'\)",
    ):
        graph.on_done(lambda summary, sink, *, extra: None, 1)
    with pytest.raises(otpy.SpecError, match="unexpected keyword argument 'other'"):
        graph.on_done(lambda summary: None, other=2)


@pytest.mark.parametrize("give", [subscribe, subscribe_to_registry, PLACES["start(reports=)"][0]])
def test_a_queue_whose_put_is_async_is_refused(give):
    """An ``asyncio.Queue`` as a sink would stay empty for ever. The error says what to
    give instead.
    """
    with pytest.raises(
        otpy.SpecError,
        match=r"for an asyncio\.Queue: lambda report: loop\.call_soon_threadsafe\(queue",
    ):
        give(asyncio.Queue())

    class WithoutArguments:
        def put(self):
            pass

    with pytest.raises(otpy.SpecError, match="an object whose put takes a report"):
        give(WithoutArguments())
    with pytest.raises(otpy.SpecError, match="would only make an object"):
        give(queue.Queue)  # the class itself
    give(queue.Queue())
    give(queue.SimpleQueue())


def test_a_snapshot_that_is_async_or_takes_no_state_is_refused():
    """It makes the copy of a state, and the state must not be a coroutine. A class may
    do that.
    """
    for copy in (dict, list, lambda state: state, None):
        thread(idle, snapshot=copy)
    for wrong in (a_coroutine, a_generator, AsyncCall(), lambda: None):
        with pytest.raises(otpy.SpecError, match="idle: snapshot = "):
            thread(idle, snapshot=wrong)


def test_what_cannot_be_looked_at_is_accepted():
    """An object whose attributes raise, or that compares itself in its own way, is no
    reason for another error.
    """

    class Shy:
        def __getattr__(self, name):
            raise RuntimeError("do not look")

        def __eq__(self, other):
            raise RuntimeError("do not compare")

        __hash__ = None

        def __call__(self, *args):
            pass

    for place in ("supervisor(on_escalation=)", "graph.on_done", "stdout", "ctx.on_stop"):
        PLACES[place][0](Shy())
    thread(Shy(), id="shy")


@pytest.mark.skipif(
    sys.version_info < (3, 14), reason="annotations are evaluated late from 3.14 on"
)
def test_an_annotation_that_only_type_checkers_know_does_not_matter():
    """To read a signature must not evaluate names that are imported for type checkers
    alone.
    """
    names = {}
    exec("def work(ctx: Unknown, number: AlsoUnknown): pass", names)
    thread(names["work"], 1)
    with pytest.raises(otpy.SpecError, match="missing a required argument: 'number'"):
        thread(names["work"])


# What only turns out when it is called


def lost(log):
    """Return the lines of *log* about coroutines that handlers returned; assert that
    there is no warning.
    """
    gc.collect()
    out, err = log.readouterr()
    assert "never awaited" not in out + err
    return [
        line for line in out.splitlines() if "TypeError" in line and "returned a coroutine" in line
    ]


def crash(ctx):
    raise ValueError("bad luck")


def with_on_stop(ctx, handler):
    ctx.on_stop(handler)
    ctx.ready()
    ctx.wait_stop()


def returned(place, handler):
    """Have *handler* called once by *place*."""
    gives_up = supervisor("app", intensity=0, children=[thread(crash)])
    if place == "start(reports=)":
        start(supervisor("app", children=[thread(idle)]), log=False, reports=handler).stop()
    elif place == "start(on_escalation=)":
        start(gives_up, log=False, on_escalation=handler).wait(HANG)
    elif place == "supervisor(on_escalation=)":
        tree = supervisor("app", intensity=0, children=[thread(crash)], on_escalation=handler)
        start(tree, log=False).wait(HANG)
    elif place == "ctx.on_stop":
        start(
            supervisor("app", children=[thread(with_on_stop, handler, ready=True)]), log=False
        ).stop()
    elif place == "registry.subscribe":
        reg = registry.ThreadRegistry()
        reg.subscribe(handler)
        reg.spawn(crash, name="t", args=(None,)).join(HANG)
    elif place == "graph.on_done":
        graph = TaskGraph()
        graph.on_done(handler)
        graph.run()
    elif place in ("stdout", "stderr"):
        to = {"stdout": "", "stderr": ">&2"}[place]
        lines = {place: handler, "restart": "temporary", "significant": True}
        program = process("sh", "-c", f"echo hello {to}", **lines)
        otpy.run(supervisor("app", auto_shutdown="any_significant", children=[program]), log=False)
    elif place == "json_reports":
        program = process("sh", "-c", "exit 3", restart="temporary", significant=True)
        tree = supervisor("app", auto_shutdown="any_significant", children=[program])
        otpy.run(tree, log=False, reports=otpy.json_reports(handler))
    else:
        raise AssertionError(place)


@pytest.mark.parametrize(
    "place",
    [
        "start(reports=)",
        "start(on_escalation=)",
        "supervisor(on_escalation=)",
        "ctx.on_stop",
        "registry.subscribe",
        "graph.on_done",
        "stdout",
        "stderr",
        "json_reports",
    ],
)
def test_a_handler_that_returns_a_coroutine_is_reported_and_the_coroutine_closed(place, capsys):
    """A lambda does not look async. Its failure is logged as any other, and nothing
    warns of a lost coroutine.
    """
    called = []

    def handler(*args):
        called.append(args)
        return a_coroutine(*args)

    returned(place, handler)

    wait_until(lambda: called, f"{place} is called")
    lines = []
    wait_until(lambda: lines.extend(lost(capsys)) or lines, "the log has it")
    assert len(lines) <= len(called)


@pytest.mark.parametrize("kind", ["generator", "async generator", "awaitable"])
def test_other_things_of_which_nothing_has_run_are_reported_as_well(kind, capsys):
    """A generator that no loop runs, and an object with ``__await__``."""

    class Later:
        def __await__(self):
            yield

    make = {
        "generator": a_generator,
        "async generator": an_async_generator,
        "awaitable": lambda *args: Later(),
    }[kind]
    returned("start(reports=)", lambda report: make(report))

    assert f"returned {'a' if kind == 'generator' else 'an'} {kind}: " in capsys.readouterr().out


def test_a_future_that_runs_by_itself_is_no_failure(capsys):
    """A handler may hand its work to a loop or a pool, and return what it gets from
    there.
    """
    got, loop = queue.SimpleQueue(), asyncio.new_event_loop()
    runner = threading.Thread(target=loop.run_forever)
    runner.start()

    async def handle(report):
        got.put(report)

    async def in_the_loop(app):
        return [asyncio.ensure_future(handle("task")), loop.create_future()]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        for handler in (
            lambda report: asyncio.run_coroutine_threadsafe(handle(report), loop),
            lambda report: pool.submit(got.put, report),
        ):
            with start(supervisor("app", children=[thread(idle)]), log=False, reports=handler):
                assert got.get(timeout=HANG).path == "app/idle"
    task, future = asyncio.run_coroutine_threadsafe(in_the_loop(None), loop).result(HANG)
    returned("start(reports=)", lambda report: task)
    returned("start(reports=)", lambda report: future)
    loop.call_soon_threadsafe(loop.stop)
    runner.join(HANG)
    loop.close()

    assert "handler_failed" not in capsys.readouterr().out


@functools.wraps(a_coroutine)
def plain_wrapper(*args):
    return a_coroutine(*args)


class AsyncRun:
    def run(self):
        return a_coroutine()


class AsyncService(otpy.Service):
    def run(self):
        return a_coroutine()


class AsyncInit(otpy.Service):
    def init(self):
        return a_coroutine()

    def run(self):
        pass


class AsyncTerminate(otpy.Service):
    def run(self):
        pass

    def terminate(self, reason):
        return a_coroutine()


TARGETS = {
    "thread": (lambda: thread(plain_wrapper, id="a", restart="temporary"), "use coroutine()"),
    "thread of a lambda": (
        lambda: thread(lambda ctx: a_coroutine(), id="a", restart="temporary"),
        "use coroutine()",
    ),
    "periodic": (
        lambda: periodic(plain_wrapper, id="a", restart="temporary"),
        "use coroutine(), with a loop",
    ),
    "adopted run": (
        lambda: thread(adopt(AsyncRun), id="a", restart="temporary"),
        "use coroutine()",
    ),
    "factory": (
        lambda: thread(adopt(lambda: a_coroutine()), id="a", restart="temporary"),
        "use coroutine()",
    ),
    "Service.run": (
        lambda: thread(AsyncService, id="a", restart="temporary"),
        "are called, not awaited",
    ),
    "Service.terminate": (
        lambda: thread(AsyncTerminate, id="a", restart="temporary"),
        "are called, not awaited",
    ),
    "process": (
        lambda: process(callees.lazy, id="a", restart="temporary"),
        "call asyncio.run() in a plain function",
    ),
}


@pytest.mark.parametrize("kind", TARGETS)
def test_a_target_that_returns_a_coroutine_has_crashed_and_is_told_what_to_use(
    kind, launch, recorder
):
    """It looks like a plain function, and would end at once, as if its work were done."""
    make, advice = TARGETS[kind]
    launch(supervisor("app", children=[make()]))

    reason = recorder.wait_for(ChildTerminated, "app/a").reason
    assert reason.kind is otpy.ExitKind.CRASHED
    assert "returned a coroutine: " in str(reason.exception)
    assert advice in str(reason.exception)
    gc.collect()


def test_an_init_that_returns_a_coroutine_is_a_failed_start():
    """The service would run unprepared."""
    with pytest.raises(otpy.StartError) as caught:
        start(supervisor("app", children=[thread(AsyncInit)]), log=False)
    assert "returned a coroutine: the methods of a Service are called" in str(
        caught.value.__cause__
    )


def test_a_spawned_target_that_returns_a_coroutine_is_reported():
    """Law 3 of the registry: it has not done its work."""
    reg, told = registry.ThreadRegistry(), queue.SimpleQueue()
    reg.subscribe(told)
    reg.spawn(plain_wrapper, name="t").join(HANG)

    assert "returned a coroutine: call asyncio.run()" in str(
        told.get(timeout=HANG).reason.exception
    )


def test_a_wrapper_around_an_async_function_is_a_coroutine_child_and_a_task():
    """What thread() refuses in the end, coroutine() takes, as its message says; a graph
    runs it.
    """
    ran = queue.SimpleQueue()

    async def work(*args):
        ran.put(threading.current_thread().name)

    @functools.wraps(work)
    def wrapper(*args):
        return work(*args)

    with start(supervisor("app", children=[coroutine(wrapper, restart="temporary")]), log=False):
        assert ran.get(timeout=HANG) == "app (loop)"
    graph = TaskGraph()
    graph.add(wrapper, "wrapped")
    graph.add(lambda: work(), "lambda")
    graph.add(functools.partial(work, 1), "partial")
    assert graph.run().ok
    assert ran.qsize() == 3


@pytest.mark.parametrize("name", ["init", "run", "stop", "terminate"])
def test_a_service_with_an_async_method_is_refused(name):
    """Its methods are called, not awaited."""

    async def method(self, *args):
        pass

    service = type("Lazy", (otpy.Service,), {"run": lambda self: None, name: method})
    with pytest.raises(otpy.SpecError, match=rf"Lazy: target = .*\({name}: an async function\)"):
        thread(service)


def test_a_service_whose_methods_take_something_else_is_refused():
    """Also where they are static or class methods; these have no self."""

    class Odd(otpy.Service):
        @staticmethod
        def init(one):
            pass

        @classmethod
        def terminate(cls, reason):
            pass

        def run(self):
            pass

    assert thread(Odd, 1).id == "Odd"
    with pytest.raises(otpy.SpecError, match="init takes"):
        thread(Odd, 1, 2)
    Odd.terminate = lambda self: None
    with pytest.raises(otpy.SpecError, match=r"terminate\(reason\) \(terminate: too many"):
        thread(Odd, 1)


def test_an_async_callback_of_a_callable_in_a_process_is_refused_there(launch, tmp_path):
    """The context there means what the context here means."""
    where = tmp_path / "said"
    launch(supervisor("app", children=[process(callees.on_stop_async, where)]))

    wait_until(where.exists)
    asynchronous, wrong, number = callees.read(where)
    assert "calling an async function would run nothing" in asynchronous
    assert "takes no arguments (missing a required argument: 'one')" in wrong
    assert number == "callback = 3: expected a callable that takes no arguments"


def test_nothing_is_lost_in_silence_in_a_program_without_tests():
    """The same in a program that runs as users run it: refused, each in one line that
    names the field.
    """
    ran = python(
        """
        import asyncio
        from otpy import SpecError, run, start, supervisor, thread
        async def handler(*args): pass
        def fail(ctx): raise ValueError
        for options in (
            {"reports": handler},
            {"reports": asyncio.Queue()},
            {"on_escalation": handler},
            {"on_escalation": lambda: None},
        ):
            for begin in (start, run):
                try:
                    begin(supervisor("app", intensity=0, children=[thread(fail)]), log=False, **options)
                except SpecError as error:
                    assert error.field == next(iter(options)), error
                    print(error.field)
        """,
        flags=["-W", "error"],
    )
    assert ran.out.split() == ["reports"] * 4 + ["on_escalation"] * 4
    assert ran.err == ""


def test_handlers_that_were_right_before_still_are():
    """Bound methods, partials, lambdas with defaults, callable objects: what can be
    called with the arguments.
    """

    class Box:
        def __init__(self):
            self.got = []

        def keep(self, report, *, extra=1):
            self.got.append(report)

        __call__ = keep

    box = Box()
    for handler in (
        box.keep,
        box,
        functools.partial(box.keep, extra=2),
        lambda report, box=box: box(report),
    ):
        before = len(box.got)
        with start(supervisor("app", children=[thread(idle)]), log=False, reports=handler):
            wait_until(lambda before=before: len(box.got) > before)


def test_mocks_are_handlers_unless_they_are_async(capsys):
    """They answer to any name, and what they return is a mock as well."""
    for handler in (unittest.mock.Mock(), unittest.mock.MagicMock()):
        with start(supervisor("app", children=[thread(idle)]), log=False, reports=handler):
            wait_until(lambda handler=handler: handler.called)
    assert "handler_failed" not in capsys.readouterr().out
    with pytest.raises(otpy.SpecError, match="calling an async function would run nothing"):
        start(supervisor("app"), log=False, reports=unittest.mock.AsyncMock())
