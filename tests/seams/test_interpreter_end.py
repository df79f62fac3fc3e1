"""When the interpreter ends, trees are stopped while everything that their children use
still works.
"""

from __future__ import annotations

import os

import pytest

from otpy.runtime import threads
from tests.seams.kit import python

TOLD = """
def tell(report):
    if type(report).__name__ in ("ChildTerminated", "LimitReached", "ShutdownError"):
        print("TOLD", type(report).__name__, report.path, report.reason, flush=True)
"""
"""A report handler for programs in which nothing may go wrong."""


@pytest.mark.parametrize("order", ["before otpy", "after otpy", "in the child"])
def test_children_are_stopped_while_executors_listeners_and_the_program_still_work(order):
    """None of them ends before the child has, whatever the order of imports and
    registrations.
    """
    ran = python(
        f"""
        import sys
        order = {order!r}

        def set_up():
            global executor, listener, is_closed, last, log
            import atexit, concurrent.futures, logging.handlers, queue, threading
            def close():
                global is_closed
                is_closed = True
            is_closed = False
            atexit.register(close)
            log, lines = logging.getLogger("child"), queue.Queue()
            log.addHandler(logging.handlers.QueueHandler(lines))
            listener = logging.handlers.QueueListener(lines, logging.StreamHandler(sys.stdout))
            listener.start()
            atexit.register(listener.stop)
            executor = concurrent.futures.ThreadPoolExecutor(2)
            last = threading.Event()
            executor.submit(last.wait)  # a job that only the child ends
            executor.submit(int).result()

        if order == "before otpy":
            set_up()
        from otpy import start, supervisor, thread
        if order == "after otpy":
            set_up()
        {TOLD.replace(chr(10), chr(10) + " " * 8)}
        def work(ctx):
            if order == "in the child":
                set_up()
            ctx.ready()
            while ctx.wait_stop(0.001) is False:
                executor.submit(int).result()
            executor.submit(int).result()
            log.error("the last line, closed: %s", is_closed)
            last.set()

        start(supervisor("app", children=[thread(work, ready=True)]), log=False, reports=tell)
        """
    )

    assert ran.out == "the last line, closed: False\n"


def test_a_process_that_only_a_child_ends_does_not_hold_up_the_end():
    """multiprocessing joins its processes in a handler of atexit.

    The child ends its process before.
    """
    ran = python(
        f"""
        import multiprocessing
        from otpy import start, supervisor, thread
        {TOLD.replace(chr(10), chr(10) + " " * 8)}
        def owner(ctx):
            fork = multiprocessing.get_context("fork")
            go = fork.Event()
            job = fork.Process(target=go.wait)
            job.start()
            ctx.ready()
            ctx.wait_stop()
            go.set()
            job.join()
            print("in order", job.exitcode, flush=True)

        start(supervisor("app", children=[thread(owner, ready=True, shutdown=20)]), log=False, reports=tell)
        """
    )

    assert ran.out == "in order 0\n"


GOES_ON = """
import concurrent.futures, threading
from otpy import registry, start, supervisor, thread

def child(ctx):
    crash[ctx.incarnation] = threading.Event()
    ctx.on_stop(crash[ctx.incarnation].set)
    lives[ctx.incarnation - 1].set()
    crash[ctx.incarnation].wait()
    if ctx.running:
        raise ValueError("bad luck")
    print("stopped", flush=True)

def go_on():
    threading.main_thread().join()
    try:
        executor.submit(int).result()
    except RuntimeError:
        print("refused", flush=True)
    crash[1].set()
    print("restarted", lives[1].wait(3), app.alive, flush=True)
    last()

lives, crash = [threading.Event() for _ in range(60)], {}
executor = concurrent.futures.ThreadPoolExecutor()
executor.submit(int).result()
app = start(supervisor("app", children=[thread(child)], intensity=50), log=False)
lives[0].wait()
threading.Thread(target=go_on).start()
"""


@pytest.mark.skipif(
    threads.STARTS_NONE_LATE, reason="this Python starts no thread then; see the next test"
)
def test_a_tree_lives_on_as_long_as_a_thread_that_is_no_daemon():
    """The main thread has ended, and other threads can see it.

    Children are restarted, and executors take work.
    """
    ran = python(GOES_ON + "last = lambda: print('done', flush=True)\n")

    assert ran.out == "restarted True True\ndone\nstopped\n"


@pytest.mark.skipif(not threads.STARTS_NONE_LATE, reason="other versions start threads then")
def test_python_that_starts_no_threads_then_is_named():
    """Such a Python can restart no child. The log says why, and how to mend it."""
    ran = python(GOES_ON + "last = lambda: print('done', flush=True)\n")

    assert "done" in ran.out
    assert ran.out.count("Python 3.12.0 to 3.12.2 starts no thread") == 1


@pytest.mark.skipif(threads.STARTS_NONE_LATE, reason="this Python ends the tree by itself then")
def test_the_last_thread_may_wait_for_all_others():
    """The steward, which waits for that thread, is none of the others."""
    ran = python(
        GOES_ON + "last = lambda: print('late', registry.shutdown_all(20).timeout_names)\n"
    )

    assert ran.out == "restarted True True\nstopped\nlate ()\n"


def test_a_thread_of_a_library_that_ends_when_the_main_thread_has_does_not_hold_up_the_end():
    """Callbacks that are registered with threading are called when the main thread has
    ended, except those of executors.
    """
    ran = python(
        """
        import threading
        from otpy import start, supervisor, thread

        def child(ctx):
            ctx.wait_stop()
            print("stopped", flush=True)

        go = threading.Event()
        threading._register_atexit(go.set)
        threading.Thread(target=lambda: (go.wait(), print("library", flush=True))).start()
        start(supervisor("app", children=[thread(child)]), log=False)
        """
    )

    assert ran.out.count("library") == ran.out.count("stopped") == 1


def test_a_tree_that_is_started_by_the_last_thread_is_stopped_too():
    """No tree ran when the main thread ended, but one had run before."""
    ran = python(
        """
        import threading
        from otpy import start, supervisor, thread

        def child(ctx):
            ctx.wait_stop()
            print("stopped", flush=True)

        def late():
            threading.main_thread().join()
            try:
                start(tree, log=False)
            except Exception as error:  # this Python starts no thread any more
                print("stopped", flush=True)

        tree = supervisor("app", children=[thread(child)])
        start(tree, log=False).stop()
        threading.Thread(target=late).start()
        """
    )

    assert ran.out.count("stopped") == 2


def test_a_supervisor_that_does_not_answer_is_named_and_left():
    """A kind of child that breaks its contract blocks its thread."""
    ran = python(
        """
        import threading
        from otpy import ChildSpec, start, supervisor
        from otpy.runtime import stopping
        from otpy.core.messages import ChildStarted

        class Blocks:
            alive, state = True, None
            def __init__(self, birth):
                self.birth = birth
            def start(self, deliver):
                deliver(ChildStarted(self.birth.ref))
            def stop(self):
                threading.Event().wait()

        stopping.TO_ANSWER = 0.3
        start(supervisor("app", children=[supervisor("s", children=[ChildSpec(id="x", start=Blocks)])]), log=False)
        """
    )

    said = ran.out + ran.err  # the log, or stderr, if no thread can be started to log it
    assert "no_answer" in said
    assert "['app/s']" in said


def test_a_thread_that_is_blocked_in_stdin_does_not_abort_the_end():
    """Python would abort, because it would have to lock the buffer of stdin, and could
    not.
    """
    read, write = os.pipe()
    ran = python(
        """
        import os, signal, sys
        from otpy import run, supervisor, thread

        def console(ctx):
            os.kill(os.getpid(), signal.SIGTERM)
            sys.stdin.buffer.readline()

        print(run(supervisor("app", children=[thread(console, shutdown=0.2)]), log=False).unstopped[0].path)
        """,
        stdin=read,
        env={"PYTHONUNBUFFERED": ""},
    )
    os.close(read)
    os.close(write)

    assert ran.out == "app/console\n"


def test_a_thread_that_is_blocked_in_stdout_does_not_abort_the_end():
    """Later lines, of a handler of atexit, go to the same file."""
    ran = python(
        """
        import atexit, os, sys, threading
        from otpy.runtime import at_exit
        from otpy import start, supervisor, thread

        atexit.register(lambda: print("atexit", file=sys.stdout and sys.__stderr__, flush=True))
        at_exit.LAST_WORD = 0.5
        read, write = os.pipe()
        sys.stdout = open(write, "w")
        begun = threading.Event()

        def chatter(ctx):
            begun.set()
            sys.stdout.write("x" * 10_000_000)

        app = start(supervisor("app", children=[thread(chatter, shutdown=0.2)]), log=False)
        begun.wait()
        """
    )

    assert ran.err == "atexit\n"


def test_the_end_of_a_child_of_multiprocessing_stops_its_trees():
    """Such a process ends without atexit.

    It calls the same function of threading as an interpreter that ends.
    """
    ran = python(
        """
        import multiprocessing
        from otpy import start, supervisor, thread

        def child(ctx):
            ctx.wait_stop()
            print("stopped", flush=True)

        def job():
            start(supervisor("app", children=[thread(child)]), log=False)

        process = multiprocessing.get_context("fork").Process(target=job)
        process.start()
        process.join()
        """
    )

    assert ran.out == "stopped\n"


def test_an_interrupt_shortens_all_limits():
    """Ctrl-C ends the wait of the main thread for a child that takes its time."""
    ran = python(
        """
        import os, signal, sys, threading
        from otpy import start, supervisor, thread

        def child(ctx):
            ctx.ready()
            ctx.wait_stop()
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                threading.Event().wait(0.01)

        start(supervisor("app", children=[thread(child, ready=True, shutdown=1000)]), log=False)
        """
    )

    assert ran.err == ""
