"""The callables that tests run in processes.

Nothing slow is imported here: each process imports this file. A callable meets its test
at a file, which appears whole.
"""

import _thread
import atexit
import ctypes
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path


def say(where, *what):
    """Write *what* to the file *where*."""
    part = Path(f"{where}.part")
    part.write_text(json.dumps(what))
    part.rename(where)


def obedient(ctx):
    ctx.wait_stop()


def obedient_and_ready(ctx):
    ctx.ready()
    ctx.wait_stop()


def crashing(ctx):
    raise ValueError("first line")


def looping(ctx):
    while True:
        pass


def tell(ctx, where):
    say(
        where,
        ctx.id,
        ctx.path,
        ctx.incarnation,
        ctx.running,
        ctx.is_ready,
        ctx.state,
        ctx.last_exit,
    )
    ctx.wait_stop()


def tell_group(ctx, where):
    say(where, os.getpid(), os.getsid(0), os.getpgrp(), os.getppid(), sys.stdin.read())
    ctx.wait_stop()


def use_otpy(ctx, where):
    import otpy

    try:
        ctx.supervisor  # noqa: B018
    except otpy.NotFound as error:
        refused = str(error)
    ctx.log.info("hello")
    ctx.on_stop(lambda: say(f"{where}.stopped", True))
    say(where, otpy.current() is ctx, refused)
    ctx.wait_stop()


def hand_over(ctx, where):
    if ctx.incarnation == 1:
        ctx.check_in({"lines": 3})
        try:
            ctx.check_in(_thread.allocate_lock())
        except TypeError as error:
            raise ValueError("bad luck") from error
    say(
        where,
        ctx.state,
        ctx.state is ctx.state,
        str(ctx.last_exit.exception),
        ctx.last_exit.kind.value,
    )
    ctx.wait_stop()


def save(ctx, *states):
    for state in states:
        ctx.check_in(state)


def fall_ill(ctx):
    raise ValueError("bad luck")


def leave(ctx, code):
    sys.exit(code)


def vanish(ctx, code):
    os._exit(code)


def segfault(ctx):
    faulthandler._sigsegv()


def kill_itself(ctx):
    os.kill(os.getpid(), signal.SIGKILL)


def raise_word(ctx, word, *args):
    import otpy

    raise getattr(otpy, word)(*args)


def raise_word_with_lock(ctx, word):
    raise_word(ctx, word, _thread.allocate_lock())


class Awkward(Exception):
    """Can be pickled, but not unpickled."""

    def __init__(self, one, two):
        super().__init__("awkward")


def raise_awkward(ctx):
    raise Awkward(1, 2)


class Nasty(Exception):
    """Raises when its traceback is read."""

    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


def raise_nasty(ctx):
    raise Nasty(_thread.allocate_lock())


def deaf(ctx, where):
    say(where, os.getpid())
    while True:
        pass


def with_grandchild(ctx, where):
    grandchild = subprocess.Popen(["sleep", "1000"])
    say(where, os.getpid(), grandchild.pid)
    ctx.ready()
    ctx.wait_stop()


def with_daemon(ctx, where, how):
    """Start one that leaves the group and the session."""
    daemon = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    say(where, os.getpid(), daemon.pid)
    if how == "crash":
        raise ValueError("bad luck")
    ctx.ready()
    ctx.wait_stop()


def with_lock_held(ctx, where):
    """Hold the interpreter's lock for ever."""
    grandchild = subprocess.Popen(["sleep", "1000"])
    say(where, os.getpid(), grandchild.pid)
    ctx.ready()
    ctypes.PyDLL(None).pause()


def ends_slowly(ctx, where):
    """Return, and leave a thread that is no daemon, and a handler of atexit."""

    def finish():
        time.sleep(0.1)
        say(f"{where}.thread", True)

    threading.Thread(target=finish).start()
    atexit.register(say, f"{where}.atexit", True)


def dies_after_its_end(ctx):
    atexit.register(kill_itself, ctx)


def hang_once(ctx):
    if ctx.incarnation == 1:
        ctx.check_in()
        signal.pause()
    while ctx.running:
        ctx.check_in()
        ctx.sleep(0.05)


def late(ctx, where):
    ctx.ready()
    while not Path(where).exists():
        time.sleep(0.005)
    ctx.check_in()
    ctx.wait_stop()


def never_ready(ctx, where):
    say(where, os.getpid())
    signal.pause()


def ready_then(ctx, where):
    assert not ctx.is_ready
    ctx.ready()
    ctx.ready()
    say(where, ctx.is_ready)
    ctx.wait_stop()


def fenced(ctx, where):
    say(where, os.getpid())
    ctx.wait_stop()
    ctx.check_in("too late")


def put(ctx, queue, what):
    queue.put(what)
    ctx.wait_stop()


def big(ctx, blob, where):
    ctx.check_in(blob)
    say(where, len(ctx.state))
    ctx.wait_stop()


def shortened(state):
    return state[:2]


def read(where):
    """Return what was said to the file *where*."""
    return json.loads(Path(where).read_text())


class Left(Exception):
    """An order to leave."""


def under_orders(ctx, where):
    """Crash at SIGUSR1, return at SIGUSR2."""

    def obey(number, frame):
        raise Left if number == signal.SIGUSR2 else ValueError("ordered to crash")

    try:
        signal.signal(signal.SIGUSR1, obey)
        signal.signal(signal.SIGUSR2, obey)
        say(where, os.getpid())
        ctx.ready()
        ctx.wait_stop()
    except Left:
        pass


async def an_async_function():
    pass


def lazy(ctx):
    return an_async_function()


def takes_one(one):
    pass


def on_stop_async(ctx, where):
    refused = []
    for callback in (an_async_function, takes_one, 3):
        try:
            ctx.on_stop(callback)
        except TypeError as error:
            refused.append(str(error))
    say(where, *refused)
    ctx.wait_stop()


class Truth:
    def __bool__(self):
        raise ValueError("the truth value of an array is ambiguous")


class Array:
    """Compares itself as arrays do."""

    def __eq__(self, other):
        return Truth()

    __ne__ = __eq__
    __bool__ = Truth.__bool__
    __hash__ = object.__hash__

    def __repr__(self):
        return "array([0, 1])"


class Zero(int):
    """An int that raises when it is asked whether it is 0."""

    def __eq__(self, other):
        raise RuntimeError("do not compare")

    __ne__ = __eq__
    __bool__ = __eq__
    __hash__ = int.__hash__


CODES = {
    # name: the code of a SystemExit, and whether the interpreter's exit status is 0 with it
    "None": (None, True),
    "0": (0, True),
    "False": (False, True),
    "Zero": (Zero(0), True),
    "1": (1, False),
    "True": (True, False),
    "256": (256, False),
    "Zero(1)": (Zero(1), False),
    "0.0": (0.0, False),
    "an empty text": ("", False),
    "text": ("no disk", False),
    "a tuple": ((0,), False),
    "Array": (Array(), False),
}


def exit_with(ctx, name):
    raise SystemExit(CODES[name][0])


def raise_group(ctx, *kinds):
    """Raise a group of groups of exceptions of otpy."""
    import otpy

    members = [getattr(otpy, kind)("enough") for kind in kinds]
    raise BaseExceptionGroup(
        "all", [BaseExceptionGroup("outer", [BaseExceptionGroup("inner", members)])]
    )


def raise_group_with_lock(ctx, kind):
    """Raise a group that cannot be pickled."""
    import otpy

    raise ExceptionGroup("outer", [getattr(otpy, kind)(_thread.allocate_lock())])


def become(ctx, *argv):
    """Become another program."""
    os.execvp(argv[0], argv)
