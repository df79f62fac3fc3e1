"""The process that runs a tree: signals, exit status, the end of the interpreter, forks.

Each of these processes is a fresh interpreter.
"""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from otpy.runtime import threads

PRELUDE = """
import os, signal, sys, threading, time
import otpy
from otpy import supervisor, thread

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece

def polite(ctx):
    say("up", ctx.id)
    ctx.ready()  # or it could be asked to stop before it has said so
    ctx.wait_stop()
    say("down", ctx.id)

def stuck(ctx):
    say("up", ctx.id)
    threading.Event().wait()

def deaf(ctx):
    say("up", ctx.id)
    while True:
        pass
"""

TREE = (
    'b = supervisor("s", children=[thread(polite, id="b", ready=True)])\n'
    'tree = supervisor("app", children=[thread(polite, id="a", ready=True), b])\n'
)

HANG = 60


def program(body, prelude=PRELUDE + TREE):
    return [
        sys.executable,
        "-X",
        "faulthandler",
        "-W",
        "error::RuntimeWarning",
        "-c",
        prelude + textwrap.dedent(body),
    ]


def run(body):
    """Return (exit status, lines of stdout, stderr)."""
    done = subprocess.run(program(body), capture_output=True, text=True, timeout=HANG, check=False)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


class Running:
    """A program that is watched line by line."""

    def __init__(self, body):
        self.process = subprocess.Popen(
            program(body), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def read(self, count):
        return [self.process.stdout.readline().rstrip() for _ in range(count)]

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        out, err = self.process.communicate(timeout=HANG)
        return self.process.returncode, out.split("\n")[:-1], err


@pytest.fixture
def watch():
    programs = []

    def start(body):
        programs.append(Running(body))
        return programs[-1]

    yield start
    for one in programs:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()
        one.process.stderr.close()


ORDER = ["down b", "down a"]


class TestInterpreterExit:
    def test_the_main_thread_returns(self):
        """The tree is stopped in order, and the process exits."""
        assert run("app = otpy.start(tree, log=False)") == (0, ["up a", "up b", *ORDER], "")

    def test_the_main_thread_raises(self):
        """The tree is stopped in order after the traceback."""
        status, out, err = run(
            "app = otpy.start(tree, log=False); raise SystemError('main is broken')"
        )

        assert (status, out[2:]) == (1, ORDER)
        assert err.rstrip().endswith("SystemError: main is broken")

    def test_sys_exit(self):
        """The status is that of ``sys.exit``."""
        status, out, _ = run("app = otpy.start(tree, log=False); sys.exit(7)")

        assert (status, out[2:]) == (7, ORDER)

    def test_a_stuck_child_does_not_keep_it_alive(self):
        """A child that does not stop is given up after its budget."""
        status, out, err = run(
            """
            children = [thread(stuck, id="x", shutdown=0.1), thread(polite, id="a")]
            app = otpy.start(supervisor("app", children=children), log=False)
            """
        )

        assert (status, sorted(out), err) == (0, ["down a", "up a", "up x"], "")

    def test_a_detached_child_is_cut_off(self):
        """No supervisor can ask a detached child, and its thread is a daemon."""
        status, out, err = run("app = otpy.start(tree, log=False); app.detach()")

        assert (status, out, err) == (0, ["up a", "up b"], "")

    def test_on_stop_callbacks_and_services_still_work(self):
        """They are called also where no thread can be started any more."""
        status, out, err = run(
            """
            class Echo(otpy.Service):
                def init(self): self.asked = threading.Event()
                def run(self): self.asked.wait()
                def stop(self): say("stop"); self.asked.set()
                def terminate(self, reason): say("terminate", reason)
            app = otpy.start(supervisor("app", children=[thread(Echo, id="e")]), log=False)
            """
        )

        assert (status, out, err) == (0, ["stop", "terminate shutdown"], "")

    def test_other_threads_may_use_the_tree_until_they_end(self):
        """The tree is stopped after all ordinary threads have ended."""
        status, out, _ = run(
            """
            app = otpy.start(tree, log=False)
            def work():
                threading.main_thread().join()
                say(len(app.which_children()))
            threading.Thread(target=work).start()
            """
        )

        if threads.STARTS_NONE_LATE:  # the log says so, with a traceback
            assert "no_new_threads" in "".join(out)
            out = [line for line in out if line in ("up a", "up b", "2", *ORDER)]
        assert (status, out[2:]) == (0, ["2", *ORDER])

    def test_several_trees(self):
        """Each tree is stopped."""
        status, out, _ = run("apps = [otpy.start(tree, log=False) for _ in range(3)]")

        assert (status, sorted(out)) == (
            0,
            ["down a"] * 3 + ["down b"] * 3 + ["up a"] * 3 + ["up b"] * 3,
        )

    def test_a_tree_that_was_stopped_is_left_alone(self):
        """A tree that was stopped is not stopped a second time."""
        assert run("app = otpy.start(tree, log=False); app.stop()")[:2] == (
            0,
            ["up a", "up b", *ORDER],
        )

    def test_without_file_descriptors(self, watch):
        """Trees are stopped although no descriptor is left."""
        running = watch(
            """
            def tidy(ctx):
                say("up")
                ctx.wait_stop()
                say("stopped")
            app = otpy.start(supervisor("app", children=[thread(tidy, id="x")]), log=False)
            def none_left():
                raise OSError("too many open files")
            import _socket
            _socket.socketpair = none_left
            """
        )

        assert running.end()[:2] == (0, ["up", "stopped"])

    def test_an_interrupt_during_the_exit_hurries(self, watch):
        """Ctrl-C while the tree is being stopped shortens all budgets to zero."""
        running = watch(
            """
            def slow(ctx):
                say("up")
                ctx.wait_stop()
                say("asked")
                threading.Event().wait()
            app = otpy.start(supervisor("app", children=[thread(slow, id="x", shutdown="infinity")]), log=False)
            """
        )
        assert running.read(2) == ["up", "asked"]
        running.signal(signal.SIGINT)

        assert running.end()[:2] == (0, [])


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_first_signal_stops_in_order(self, watch, number):
        """``run`` returns the report, and the handlers are put back."""
        running = watch(
            """
            before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
            report = otpy.run(tree, log=False)
            assert before == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
            say(report.stopped, report.reason)
            """
        )
        running.read(2)
        running.signal(number)

        assert running.end() == (0, [*ORDER, "('app/s/b', 'app/s', 'app/a') shutdown"], "")

    def test_the_second_signal_hurries(self, watch):
        """All budgets are zero from the second signal on."""
        running = watch(
            """
            def slow(ctx):
                say("up")
                ctx.wait_stop()
                say("asked")
                while True: pass
            otpy.runtime.running.SAME = -1.0  # each signal counts, however soon it comes
            report = otpy.run(supervisor("app", children=[thread(slow, id="x", shutdown="infinity")]), log=False)
            say(report.interrupted)
            """
        )
        running.read(1)
        running.signal(signal.SIGINT)
        assert running.read(1) == ["asked"]
        running.signal(signal.SIGINT)

        assert running.end()[:2] == (0, ["('app/x',)"])

    def test_the_third_signal_exits_at_once(self, watch):
        """The third signal ends the process, whatever still runs."""
        running = watch(
            """
            def slow(ctx):
                say("up")
                ctx.wait_stop()
                say("asked")
                threading.Event().wait()
            otpy.runtime.supervisor.SupervisorMachine.__init__.__defaults__ = (3600.0, None)  # a grace that does not end
            otpy.runtime.running.SAME, otpy.runtime.stopping.OVERDUE = -1.0, 3600.0
            otpy.run(supervisor("app", children=[thread(slow, id="x", shutdown="infinity")]), log=False)
            """
        )
        running.read(1)
        running.signal(signal.SIGTERM)
        assert running.read(1) == ["asked"]
        running.signal(signal.SIGTERM)
        running.signal(signal.SIGINT)
        status, _, _ = running.end()

        assert status in (128 + signal.SIGTERM, 128 + signal.SIGINT)

    def test_a_signal_that_another_thread_gets(self, watch):
        """The main thread wakes all the same, and the tree is stopped in order."""
        running = watch(
            """
            def where_main_is():
                frame = sys._current_frames()[threading.main_thread().ident]
                return frame.f_code, frame.f_lasti
            def signalled(ctx):
                say("up")
                before = None
                while before != (before := where_main_is()):
                    ctx.sleep(0.05)
                signal.raise_signal(signal.SIGTERM)  # to this thread, not to the process
                ctx.wait_stop()
            children = [thread(polite, id="a"), thread(signalled, id="x")]
            say(otpy.run(supervisor("app", children=children), log=False).stopped)
            """
        )

        assert running.end()[:2] == (0, ["up a", "up", "down a", "('app/x', 'app/a')"])

    def test_a_signal_while_the_tree_starts(self, watch):
        """The stop overtakes the start: a child that is up is stopped, and no other is
        started.
        """
        running = watch(
            """
            def slow(ctx):
                say("starting")
                ctx.wait_stop()
            children = [thread(polite, id="a"), thread(slow, id="b", ready=True), thread(polite, id="c")]
            say(otpy.run(supervisor("app", children=children), log=False).stopped)
            """
        )
        assert running.read(2) == ["up a", "starting"]
        running.signal(signal.SIGINT)

        assert running.end() == (0, ["down a", "('app/b', 'app/a')"], "")

    def test_an_interrupt_while_start_waits(self, watch):
        """``start`` stops the children that it has started, and then raises
        KeyboardInterrupt.
        """
        running = watch(
            """
            def slow(ctx):
                say("starting")
                ctx.wait_stop()
            try:
                children = [thread(polite, id="a"), thread(slow, id="b", ready=True)]
                otpy.start(supervisor("app", children=children), log=False)
            except KeyboardInterrupt:
                say("interrupted", len(threading.enumerate()))
            """
        )
        running.read(2)
        running.signal(signal.SIGINT)

        assert running.end()[:2] == (0, ["down a", "interrupted 1"])

    def test_run_off_the_main_thread_handles_no_signals(self):
        """Only the main thread can handle signals; ``run`` on another one does not try."""
        status, out, err = run(
            """
            job = thread(lambda ctx: None, id="job", restart="transient", significant=True)
            tree = supervisor("app", auto_shutdown="any_significant", children=[job])
            runner = threading.Thread(target=lambda: say(otpy.run(tree, log=False).reason))
            runner.start()
            runner.join()
            """
        )

        assert (status, out, err) == (0, ["shutdown: auto_shutdown"], "")


def test_a_failed_tree_is_a_failed_program():
    """The traceback names the failure, and the status is not zero."""
    status, _, err = run(
        """
        def crash(ctx):
            raise ValueError("disk gone")
        otpy.run(supervisor("app", intensity=0, children=[thread(crash, id="x")]), log=False)
        """
    )

    assert status == 1
    assert "ValueError: disk gone" in err
    assert "otpy.exceptions.TreeFailed: app gave up: limit_reached: ValueError('disk gone')" in err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestFork:
    def test_a_forked_process_does_not_run_its_parents_trees(self):
        """In a fork, handles raise NotAlive and the exit stops nothing; it can run
        trees of its own.
        """
        status, out, _ = run(
            """
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            app = otpy.start(tree, log=False)
            child = os.fork()
            if child == 0:
                say("alive", app.alive)
                for call in (app.which_children, app.stop, app.wait):
                    try:
                        call()
                    except otpy.NotAlive as error:
                        say(error.detail)
                own = otpy.start(supervisor("own", children=[thread(polite, id="c")]), log=False)
                sys.exit(3)
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), app.alive)
            """
        )

        forked = [
            "alive False",
            *["it runs in the process that this one was forked from"] * 3,
            "up c",
            "down c",
        ]
        assert (status, out) == (0, ["up a", "up b", *forked, "3 True", *ORDER])

    def test_a_child_that_forks(self):
        """The copy of a child's thread ends as the copy of the process does. No end is
        reported twice.
        """
        status, out, _ = run(
            """
            import warnings
            warnings.simplefilter("ignore", DeprecationWarning)
            done = threading.Event()
            def forks(ctx):
                child = os.fork()
                if child == 0:
                    os._exit(5)
                say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                done.set()
                ctx.wait_stop()
            app = otpy.start(supervisor("app", children=[thread(forks, id="x")]), log=False)
            done.wait()
            """
        )

        assert (status, out) == (0, ["5"])
