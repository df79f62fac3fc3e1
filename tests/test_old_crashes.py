"""What a crash leaves behind is released, on the threads of children, and soon."""

import gc
import threading
import weakref

import pytest

from otpy import (
    supervisor,
    thread,
)
from tests.helpers import HANG, wait_until

BIG = weakref.WeakSet()


class Big:
    """Something that a crash leaves in its locals."""

    def __init__(self):
        BIG.add(self)


@pytest.mark.parametrize("nested", [False, True])
def test_the_locals_of_old_crashes_are_released(launch, nested):
    """Only the last crash keeps its frames, although each replacement knew of the one before and kept that."""
    up = threading.Event()

    def crash(ctx):
        _big, _why = Big(), ctx.last_exit
        starts.append(1)
        if len(starts) <= 50:
            raise ValueError
        up.set()
        ctx.wait_stop()

    starts = []
    tree = supervisor("s", intensity=0 if nested else 1000, children=[thread(crash, id="a")])
    launch(supervisor("app", intensity=1000, children=[tree]), reports=None)
    assert up.wait(HANG)

    def is_flat():
        gc.collect()
        return len(BIG) <= 4

    wait_until(is_flat, "the locals are released")


def test_what_goes_slowly_delays_nobody(launch):
    """The end of the child is reported before the locals of the crash before are released."""
    go, done, count = threading.Event(), threading.Event(), []

    class Slow:
        def __del__(self):
            count.append(1)
            go.wait(HANG)

    def child(ctx):
        slow = Slow()
        if ctx.incarnation == 4:
            done.set()
            ctx.wait_stop()
        raise RuntimeError(type(slow))

    launch(supervisor("app", children=[thread(child)], intensity=100))
    assert done.wait(HANG)
    assert len(count) <= 2
    go.set()


def test_old_crashes_need_no_garbage_collector(launch):
    """A crash is in no cycle with the thread that it ended: ten thousand of them would keep the collector busy."""
    crashes, up = [], threading.Event()

    def child(ctx):
        if ctx.incarnation == 20:
            up.set()
            ctx.wait_stop()
            return
        raise Crash

    class Crash(Exception):
        def __init__(self):
            crashes.append(weakref.ref(self))

    def alive():
        return [number for number, crash in enumerate(crashes) if crash() is not None]

    gc.disable()
    try:
        launch(supervisor("app", children=[thread(child)], intensity=100), reports=None)
        assert up.wait(HANG)
        wait_until(lambda: alive() == [len(crashes) - 1])  # ctx.last_exit of the child that lives
    finally:
        gc.enable()


def test_the_locals_of_old_crashes_go_in_a_child_thread(launch):
    """What runs when they go is the program's code, and none of that runs on a supervisor's thread."""
    gone, done = [], threading.Event()

    class Local:
        def __del__(self):
            gone.append(threading.current_thread().name)

    def child(ctx):
        local = Local()
        if ctx.incarnation == 4:
            done.set()
            ctx.wait_stop()
        raise RuntimeError(type(local))

    launch(supervisor("app", children=[thread(child)], intensity=100))
    assert done.wait(HANG)

    assert gone == ["app/child", "app/child"]


def test_nothing_of_a_dead_child_stays_alive(launch):
    """Arguments of a temporary child, and the frame of its crash, are released."""

    class Big:
        pass

    def crash(ctx, argument):
        raise ValueError

    big = Big()
    alive = weakref.ref(big)
    app = launch(supervisor("app"), reports=None)
    app.start_child(thread(crash, big, id="a", restart="temporary"))
    del big
    wait_until(lambda: not app.which_children())

    def is_gone():
        gc.collect()
        return alive() is None

    wait_until(is_gone, "the argument is released")
