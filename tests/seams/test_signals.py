"""What signals mean to a tree, to a task graph, and to the process around them."""

from __future__ import annotations

import signal

import pytest

import otpy
from otpy.reports import SignalStop
from otpy.runtime.signals import Signals
from tests.seams.kit import python

PRELUDE = """
    import ctypes, faulthandler, json, os, signal, socket, sys, threading, time, warnings
    import structlog
    import otpy
    from otpy.runtime import running
    from otpy import supervisor, thread
    from otpy.taskgraph import TaskGraph
    warnings.simplefilter("ignore", DeprecationWarning)
    HANG = 20.0

    def send(*numbers):
        for number in numbers:
            os.kill(os.getpid(), number)

    def sending(*numbers):
        '''A child that sends signals to its own process, and ends when it is asked.'''
        def send_them(ctx):
            send(*numbers)
            ctx.wait_stop()
        return thread(send_them, id="sends")

    def flushing(ctx):
        ctx.wait_stop()
        for _ in range(20):
            time.sleep(0.01)
        print("flushed", flush=True)

    def brief(ctx):
        pass

    def short(*children):
        '''A tree that ends by itself, when its last child has.'''
        last = thread(brief, restart="transient", significant=True)
        return supervisor("app", auto_shutdown="any_significant", children=[*children, last])

    class Late(Exception):
        pass

    def late(*_):
        raise Late

    def left():
        '''What of a tree still runs, and goes on: a thread that was told to end needs a moment.'''
        until = time.monotonic() + HANG
        while (names := [one.name for one in threading.enumerate() if one.name.startswith("app")]) and (
            time.monotonic() < until
        ):
            time.sleep(0.001)
        return names

"""
STOPS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"]


def program(source, *args, **options):
    return python(PRELUDE + source, *args, **options)


def test_each_stop_signal_stops_in_order_and_each_stage_is_logged():
    """The log has the name of the signal.

    The main thread does not write it, because it may hold the log's lock.
    """
    ran = program(
        """
    def logs_here(logger, method, event):
        assert threading.current_thread() is not threading.main_thread()
        return event
    structlog.configure(processors=[logs_here, structlog.processors.JSONRenderer()])
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
    before = [signal.getsignal(number) for number in numbers]
    for number in numbers:
        report = otpy.run(supervisor("app", children=[thread(flushing), sending(number)]))
        assert before == [signal.getsignal(number) for number in numbers]
        print(report.stopped, report.reason, flush=True)
    """
    )
    lines = ran.out.splitlines()

    assert lines.count("flushed") == len(STOPS)
    assert lines.count("('app/sends', 'app/flushing') shutdown") == len(STOPS)
    for name in STOPS:
        assert f'"detail": "{name}: stopping; once more shortens all limits"' in ran.out
        assert f'"detail": "{name}: stopped after 0.' in ran.out


def test_every_stop_signal_within_a_second_is_the_same_request():
    """Wrappers and service managers signal a process, and then its whole group."""
    ran = program(
        """
    numbers = [signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM]
    report = otpy.run(supervisor("app", children=[thread(flushing), sending(*numbers)]), log=False)
    print(report.interrupted)
    """
    )

    assert ran.out == "flushed\n()\n"


def test_every_stop_signal_within_a_second_is_the_same_request_to_a_task_graph():
    """The tasks that run may finish."""
    ran = program(
        """
    graph = TaskGraph(workers=1)
    def task():
        send(signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
        time.sleep(0.3)
    graph.add(task, "runs")
    graph.add(time.time, "waits", after=["runs"])
    print({name: outcome.value for name, outcome in graph.run().outcomes.items()})
    """
    )

    assert ran.out == "{'runs': 'passed', 'waits': 'cancelled'}\n"


def test_a_second_signal_shortens_all_limits_and_a_third_exits_at_once():
    """The log names the second one, and stderr the third."""
    ran = program(
        """
    running.SAME = 0.1
    otpy.runtime.stopping.OVERDUE = HANG
    otpy.runtime.supervisor.SupervisorMachine.__init__.__defaults__ = (HANG, None)  # a grace that is long
    class Stubborn(Exception):
        pass
    def stubborn(ctx):
        send(signal.SIGTERM)
        ctx.wait_stop()
        time.sleep(0.2)
        send(signal.SIGHUP)
        try:
            while True:
                time.sleep(0.01)
        except otpy.Killed:
            print("interrupted", flush=True)
        time.sleep(0.2)
        send(signal.SIGINT)
        time.sleep(HANG)
    otpy.run(supervisor("app", children=[thread(stubborn, shutdown="infinity")]))
    """,
        expect=128 + signal.SIGINT,
    )

    assert "SIGHUP: all limits are zero; once more exits at once" in ran.out
    assert "interrupted" in ran.out
    assert ran.err == "otpy: SIGINT: exits at once\n"


def test_a_third_signal_exits_a_task_graph_at_once():
    """A callback that does not return delays the end for which the first two have
    asked.
    """
    ran = program(
        """
    from otpy import taskgraph
    running.SAME, taskgraph.run.LAST_WORD = 0.05, HANG
    graph = TaskGraph(workers=1)
    def insist(name):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            send(number)
            time.sleep(0.1)
        time.sleep(HANG)
    graph.add(time.time, "task")
    graph.on_task_start(insist)
    graph.run()
    """,
        expect=128 + signal.SIGQUIT,
    )

    assert ran.out == ""


def test_the_stages_of_a_stop_are_reports():
    """They come in order, with the name of the signal and, at the end, the reason."""
    ran = program(
        """
    got = []
    otpy.run(supervisor("app", children=[sending(signal.SIGTERM)]), log=False, reports=got.append)
    print([(type(one).__name__, one.path, one.signal, one.stage.value) for one in got[1:]], got[-1].reason)
    """
    )

    first, last = (("SignalStop", "app", "SIGTERM", stage) for stage in ("stopping", "stopped"))
    assert ran.out == f"[{first}, {last}] shutdown\n"


def test_without_a_signal_no_stage_is_told(launch, recorder):
    """A call of ``stop`` makes no SignalStop report."""
    launch(otpy.supervisor("app")).stop()

    assert recorder.of(SignalStop) == []


def test_signals_that_are_ignored_stay_ignored():
    """Signals are ignored in a background job of a script, or under nohup."""
    ran = program(
        """
    numbers = [signal.Signals[name] for name in sys.argv[1:]]
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    def work(ctx):
        send(*numbers)
        print("asked" if ctx.wait_stop(0.3) else "runs on", flush=True)
    tree = supervisor("app", auto_shutdown="any_significant",
                      children=[thread(work, restart="temporary", significant=True)])
    otpy.run(tree, log=False)
    assert all(signal.getsignal(number) is signal.SIG_IGN for number in numbers)
    """,
        *STOPS,
    )

    assert ran.out == "runs on\n"


class TestHandlersOfTheProgram:
    """Handlers that the parent process had before the call."""

    def test_a_handler_for_hangups_is_left_alone_and_others_come_back(self):
        """SIGHUP often means to read the configuration again.

        ``run`` takes the other signals.
        """
        ran = program(
            """
    heard = threading.Event()
    mine = [lambda *_: heard.set(), lambda *_: None, lambda *_: None]
    numbers = [signal.SIGHUP, signal.SIGINT, signal.SIGTERM]
    for number, handler in zip(numbers, mine):
        signal.signal(number, handler)
    def work(ctx):
        send(signal.SIGHUP)
        print(heard.wait(HANG), ctx.running, flush=True)
        send(signal.SIGTERM)
        ctx.wait_stop()
    print(otpy.run(supervisor("app", children=[thread(work)]), log=False).reason)
    assert [signal.getsignal(number) for number in numbers] == mine
    """
        )

        assert ran.out == "True True\nshutdown\n"

    def test_a_handler_that_is_not_pythons_is_left_alone(self):
        """Python cannot put back a handler of ``faulthandler``'s, or one older than
        Python.
        """
        ran = program(
            """
    faulthandler.register(signal.SIGQUIT, all_threads=False)  # a look at other threads that end is not safe
    libc = ctypes.CDLL(None)
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    libc.signal(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))
    del sys.modules["_signal"]
    import _signal  # it looks at all handlers, as when Python starts
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert signal.getsignal(signal.SIGTERM) is None
    print(otpy.run(short(sending(signal.SIGQUIT)), log=False).reason)
    """
        )

        assert ran.out == "shutdown: auto_shutdown\n"
        assert "most recent call first" in ran.err

    def test_what_a_handler_raises_goes_on_when_the_tree_has_stopped(self):
        """The stop is in order: the child has its time.

        Job queues limit the time of a call so.
        """
        ran = program(
            """
    signal.signal(signal.SIGALRM, late)
    def slow_to_start(ctx):
        send(signal.SIGALRM)
        ctx.wait_stop()
    tree = supervisor("app", children=[thread(flushing), thread(slow_to_start, ready=True)])
    for call in (otpy.run, otpy.start):
        try:
            call(tree, log=False)
        except Late:
            print("late", left(), flush=True)
    """
        )

        assert ran.out == "flushed\nlate []\n" * 2

    def test_what_a_handler_raises_again_shortens_the_stop(self):
        """A second exception shortens the limits. The first one goes on in the end."""
        ran = program(
            """
    running.SAME = 0.1
    raised = iter([Late("first"), Late("second"), Late("third")])
    def handler(*_):
        raise next(raised)
    signal.signal(signal.SIGALRM, handler)
    def stubborn(ctx):
        send(signal.SIGALRM)
        ctx.wait_stop()
        time.sleep(0.2)
        send(signal.SIGALRM)
        try:
            while True:
                time.sleep(0.01)
        finally:
            print("interrupted", flush=True)
    try:
        otpy.run(supervisor("app", children=[thread(stubborn, shutdown="infinity")]), log=False)
    except Late as error:
        print(error, left())
    """
        )

        assert ran.out == "interrupted\nfirst []\n"

    def test_what_a_handler_raises_ends_a_task_graph_first(self):
        """No task is begun after ``run`` has raised."""
        ran = program(
            """
    signal.signal(signal.SIGALRM, late)
    begun = []
    graph = TaskGraph(workers=1)
    graph.add(lambda: (send(signal.SIGALRM), time.sleep(0.2)), "first")
    graph.add(lambda: begun.append(1), "second", after=["first"])
    try:
        graph.run()
    except Late:
        print("late", begun, [one.name for one in threading.enumerate()])
    """
        )

        assert ran.out == "late [] ['MainThread']\n"

    def test_a_handler_that_exits_the_program_exits_it(self):
        """The handler of SIGTERM often calls ``sys.exit``, also while a tree starts."""
        ran = program(
            """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    otpy.start(supervisor("app", children=[sending(signal.SIGTERM), thread(flushing, ready=True)]), log=False)
    """,
            expect=7,
        )

        assert ran.out == "flushed\n"


def raise_late(number, frame):
    raise RuntimeError("late")


@pytest.fixture
def usr1():
    """SIGUSR1, whose handler is the test's own and comes back."""
    before = signal.getsignal(signal.SIGUSR1)
    yield signal.SIGUSR1
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_for_which_there_is_nothing_to_stop_is_the_programs(usr1):
    """The tree had ended, and the handlers of before were not back yet.

    So it is sent again.
    """
    signal.signal(usr1, raise_late)
    signals = Signals(lambda: [usr1], lambda name: False)
    signals.open()
    signal.raise_signal(usr1)  # nothing happens yet
    with pytest.raises(RuntimeError, match="late"):
        signals.close()

    assert signal.getsignal(usr1) is raise_late


def test_a_handler_that_is_back_and_raises_keeps_no_other_from_coming_back(usr1, monkeypatch):
    """All handlers come back, and then the exception goes on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signals = Signals(lambda: [*before, usr1], lambda name: True)
    signal.signal(usr1, raise_late)
    signals.open()
    put_back = signal.signal

    def interrupted(number, handler):
        result = put_back(number, handler)
        if number == usr1:
            monkeypatch.undo()
            signal.raise_signal(usr1)
        return result

    monkeypatch.setattr(signal, "signal", interrupted)
    with pytest.raises(RuntimeError, match="late"):
        signals.close()

    assert {number: signal.getsignal(number) for number in before} == before
    assert signal.getsignal(usr1) is raise_late
    signals.close()  # nothing is left to do


def test_signals_of_others_are_passed_on_to_the_descriptor_that_was_there_before():
    """An event loop learns of its own signals by that descriptor.

    It does not learn of those that ``run`` handles.
    """
    ran = program(
        """
    mine, other = socket.socketpair()
    mine.setblocking(False)
    signal.set_wakeup_fd(mine.fileno())
    signal.signal(signal.SIGUSR1, lambda *_: None)
    otpy.run(supervisor("app", children=[sending(signal.SIGUSR1, signal.SIGTERM)]), log=False)
    print(other.recv(100) == bytes([signal.SIGUSR1]), signal.set_wakeup_fd(-1) == mine.fileno())
    """
    )

    assert ran.out == "True True\n"


def test_run_in_a_subinterpreter_handles_no_signals():
    """A subinterpreter cannot.

    Its ``threading`` calls its thread the main thread all the same.
    """
    ran = program(
        """
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    one = interpreters.create("legacy") if sys.version_info >= (3, 13) else interpreters.create(isolated=False)
    interpreters.run_string(one, '''if True:
        import os
        import otpy
        child = otpy.thread(lambda ctx: None, id="a", restart="transient", significant=True)
        try:
            report = otpy.run(otpy.supervisor("app", auto_shutdown="any_significant", children=[child]), log=False)
            os.write(1, f"{report.reason}".encode())
        except BaseException as error:
            os.write(1, f"raised {error!r}".encode())
        os._exit(0)
    ''')
    """
    )

    assert ran.out == "shutdown: auto_shutdown"


class TestForks:
    """A forked process, and the tree of its parent."""

    def test_a_forked_process_has_the_signals_of_the_program(self):
        """A signal to a fork does not mean the tree, which runs in the other process."""
        ran = program(
            """
    def forks(ctx):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(write, b"!")
            threading.Event().wait(HANG)
            os._exit(9)
        os.read(read, 1)
        os.kill(pid, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), ctx.wait_stop(0.2), flush=True)
    tree = supervisor("app", auto_shutdown="any_significant",
                      children=[thread(forks, restart="temporary", significant=True)])
    print(otpy.run(tree, log=False).reason)
    """
        )

        assert ran.out == f"{-signal.SIGTERM} False\nshutdown: auto_shutdown\n"

    def test_a_fork_in_a_child_is_none_of_the_trees_threads(self):
        """In the fork ``current`` knows no child, the handle is not alive, and a new
        tree runs.
        """
        ran = program(
            """
    def forks(ctx):
        pid = os.fork()
        if pid == 0:
            try:
                otpy.current()
            except otpy.NotFound:
                print("no child", ctx.supervisor.alive, len(otpy.registry.active()), flush=True)
            print(otpy.run(short(), log=False).reason, flush=True)
            os._exit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), otpy.current() is ctx, flush=True)
    tree = supervisor("app", auto_shutdown="any_significant",
                      children=[thread(forks, restart="temporary", significant=True)])
    otpy.run(tree, log=False)
    """
        )

        assert ran.out == "no child False 0\nshutdown: auto_shutdown\n3 True\n"

    def test_a_task_that_forks_and_returns_leaves_no_process(self):
        """The copy of the worker's thread ends: no task ever comes to it."""
        ran = program(
            """
    pids = []
    graph = TaskGraph(workers=1)
    def task():
        pids.append(os.fork())
    graph.add(task, "forks")
    graph.run()
    if pids[0]:
        deadline = time.monotonic() + HANG
        while (ended := os.waitpid(pids[0], os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(pids[0], signal.SIGKILL)
        print(ended != (0, 0))
    """
        )

        assert ran.out == "True\n"

    def test_a_fork_waits_until_no_thread_of_otpys_is_inside_the_log(self):
        """A lock that such a thread holds would stay locked in the fork for ever."""
        ran = program(
            """
    lock, inside, go_on = threading.Lock(), threading.Event(), threading.Event()
    def guarded(logger, method, event):
        with lock:
            inside.set()
            assert go_on.wait(HANG)
        return event
    structlog.configure(processors=[guarded, structlog.processors.JSONRenderer()])
    app = otpy.start(short())
    assert inside.wait(HANG)
    threading.Timer(0.2, go_on.set).start()
    pid = os.fork()
    if pid == 0:
        os._exit(5 if lock.acquire(timeout=1.0) else 6)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)
    """
        )

        assert ran.out.splitlines()[-1] == "5"

    def test_a_fork_does_not_wait_for_ever_for_a_log_that_is_blocked(self):
        """The next fork, in another thread, does not either."""
        ran = program(
            """
    otpy.runtime.log.FORK = 0.1
    inside, for_ever = threading.Event(), threading.Event()
    def blocked(logger, method, event):
        inside.set()
        for_ever.wait()
        return event
    structlog.configure(processors=[blocked])
    otpy.start(short())
    assert inside.wait(HANG)
    def forks():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    forkers = [threading.Thread(target=forks) for _ in range(3)]
    for one in forkers:
        one.start()
    for one in forkers:
        one.join(HANG)
    print([one.is_alive() for one in forkers], flush=True)
    os._exit(0)
    """
        )

        assert ran.out == "[False, False, False]\n"
