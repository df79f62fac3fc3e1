"""Whole programs: the end of ``main``, signal handlers, forks."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest


def program(body, timeout=60):
    """Run *body* in a process of its own; return (exit status, lines of stdout,
    stderr).
    """
    prelude = """
    import os, signal, sys, threading, time, warnings
    import otpy
    from otpy import registry, supervisor, thread

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece
    """
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-c",
        textwrap.dedent(prelude) + textwrap.dedent(body),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


class TestPrograms:
    """Programs in processes of their own."""

    def test_the_end_of_a_main_function(self):
        """``shutdown_all`` at the end of ``main`` ends trees and threads, and closes
        the registry for ever.
        """
        status, out, err = program(
            """
            def work():
                while not registry.shutdown_requested():
                    registry.wait_shutdown(3600)
                say("down work")

            def child(ctx):
                ctx.wait_stop()
                say("down", ctx.path)

            def main():
                registry.spawn(work, name="work")
                app = otpy.start(supervisor("app", children=[thread(child, id=id) for id in "ab"]), log=False)
                try:
                    pass  # the program
                finally:
                    stats = registry.shutdown_all()
                    say(stats.total, stats.joined, stats.timeout, stats.orphaned, sorted(stats.joined_names))
                try:
                    registry.spawn(work, name="late")
                except otpy.NotAlive:
                    say("refused", registry.shutdown_requested(), registry.wait_shutdown())
                say(app.alive, registry.dump_status().split(chr(10))[0])

            main()
            """
        )

        assert (status, err) == (0, "")
        assert sorted(out[:3]) == ["down app/a", "down app/b", "down work"]
        assert out.index("down app/b") < out.index("down app/a")
        assert out[3:] == [
            "5 5 0 0 ['app', 'app (reserve)', 'app/a', 'app/b', 'work']",
            "refused True True",
            "False 0 threads, shutdown requested",
        ]

    def test_a_signal_handler_may_shut_down(self):
        """A handler may call ``shutdown_all`` at any moment.

        The main thread may be just about to wait, or to spawn.
        """
        status, out, err = program(
            """
            import random
            reg = None
            def handler(*args):
                if reg is not None:
                    reg.shutdown_all(10.0)
                    reg.active()
            signal.signal(signal.SIGALRM, handler)
            for number in range(3000):
                reg = registry.ThreadRegistry()
                signal.setitimer(signal.ITIMER_REAL, random.random() * 1e-4 + 1e-6, 0.01)  # again: Python may miss one
                if number % 10 == 0:
                    try:
                        for n in range(1000):
                            reg.spawn(reg.wait_shutdown, name=str(n))
                    except otpy.NotAlive:
                        pass
                reg.wait_shutdown()
                reg.shutdown_all(10.0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            say("done", threading.active_count())
            """
        )

        assert (status, out, err) == (0, ["done 1"], "")

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_fork(self):
        """A fork knows none of the threads.

        It can spawn threads under their names, even if another thread held the lock at
        the fork.
        """
        status, out, err = program(
            """
            warnings.simplefilter("ignore", DeprecationWarning)
            gate, held = threading.Event(), threading.Event()
            private = registry.ThreadRegistry()
            from otpy.registry.door import door
            for reg in (registry.default(), private):
                reg.spawn(gate.wait, name="t")
            def hold():
                with door():
                    held.set()
                    gate.wait()
            holder = threading.Thread(target=hold)
            holder.start()
            held.wait()
            child = os.fork()
            if child == 0:
                for reg in (registry.default(), private):
                    say(reg.active(), reg.shutdown_requested)
                    reg.spawn(reg.wait_shutdown, name="t")
                    stats = reg.shutdown_all(10)
                    say(stats.joined_names, stats.timeout_names)
                os._exit(3)
            say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            gate.set()
            holder.join()
            for reg in (registry.default(), private):
                say(reg.shutdown_requested)
            """
        )

        assert (status, err) == (0, "")
        assert out == ["() False", "('t',) ()"] * 2 + ["3", "False", "False"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
    def test_a_spawned_thread_that_forks(self):
        """A fork inherits the flag.

        The thread that has forked is the main thread there, and its crash is reported
        there.
        """
        status, out, err = program(
            """
            warnings.simplefilter("ignore", DeprecationWarning)
            reg, gate = registry.ThreadRegistry(), threading.Event()
            children = []
            def forks():
                reg.wait_shutdown()
                child = os.fork()
                if child == 0:
                    say(reg.active(), reg.shutdown_requested)
                    try:
                        reg.spawn(print, name="late")
                    except otpy.NotAlive:
                        say("refused")
                    say(reg.shutdown_all(10).total)
                    raise ValueError("in the copy")
                children.append(child)
            def sink(report):
                say("report", report.path, os.getpid() != parent)
                os._exit(5)
            parent = os.getpid()
            reg.subscribe(sink)
            registry.otpy = None
            reg.spawn(forks, name="t")
            say(reg.shutdown_all(30).joined_names)
            say(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
            """
        )

        assert (status, err) == (0, "")
        assert [
            line
            for line in out
            if line in ("() True", "refused", "0", "report t True", "('t',)", "5")
        ]
        assert {"() True", "refused", "0", "report t True", "('t',)", "5"} <= set(out)
