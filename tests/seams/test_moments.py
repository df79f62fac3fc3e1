"""A thread is interrupted only at moments when it holds nothing that others need."""

import contextlib
import functools
import gc
import importlib
import logging
import multiprocessing
import operator
import pathlib
import queue
import sys
import threading
import time
import weakref

import pytest

import otpy
from otpy import Killed, supervisor, thread
from otpy.children import interrupt, moments
from otpy.reports import Unstopped
from otpy.runtime import stacks
from tests.helpers import HANG, wait_until
from tests.seams.kit import python

# Moments to interrupt

LOCK = threading.Lock()


class Owner:
    """Has a lock of its own; uses it in each way."""

    __slots__ = ("condition", "inside", "leave", "lock", "state")

    def __init__(self):
        self.lock, self.condition = threading.RLock(), threading.Condition()
        self.inside, self.leave, self.state = threading.Event(), threading.Event(), "whole"

    def hold(self):
        """Do something that must not be interrupted, as long as the test wants."""
        self.state = "torn"
        self.inside.set()
        deadline = time.monotonic() + HANG
        while not self.leave.is_set() and time.monotonic() < deadline:
            pass
        self.state = "whole"


def with_attribute(owner):
    with owner.lock:
        owner.hold()


def with_global(owner):
    with LOCK:
        owner.hold()


def with_several(owner):
    with contextlib.nullcontext(), owner.condition, contextlib.nullcontext():
        owner.hold()


def with_closure(owner):
    lock = threading.Semaphore()

    def body():
        with lock:
            owner.hold()

    body()


def with_finally(owner):
    LOCK.acquire()
    try:
        owner.hold()
    finally:
        LOCK.release()


def with_multiprocessing(owner):
    lock = multiprocessing.get_context("spawn").Lock()
    with lock:
        owner.hold()


def while_entering(owner):
    class Context:
        def __enter__(self):
            owner.hold()

        def __exit__(self, *exc_info):
            """Nothing is held any more."""

    with Context():
        pass


def while_leaving(owner):
    class Context:
        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            owner.hold()

    with Context():
        pass


def while_acquiring(owner):
    class Lock:
        def acquire(self):
            owner.hold()

    Lock().acquire()


def while_finalizing(owner):
    class Last:
        def __del__(self):
            owner.hold()

    Last()


def while_logging(owner):
    class Slow(logging.Handler):
        def emit(self, record):
            owner.hold()

    Slow().handle(logging.makeLogRecord({}))


def while_importing(owner):
    importlib.import_module("held_up")


BUSY = [
    with_attribute,
    with_global,
    with_several,
    with_closure,
    with_finally,
    with_multiprocessing,
    while_entering,
    while_leaving,
    while_acquiring,
    while_finalizing,
    while_logging,
    while_importing,
]


@pytest.fixture
def owner(monkeypatch, tmp_path):
    owner = Owner()
    (tmp_path / "held_up.py").write_text("import sys\nsys.held_up.hold()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "held_up", owner, raising=False)
    yield owner
    owner.leave.set()
    sys.modules.pop("held_up", None)


class Loop:
    """A child that is busy with something, and then loops until it is interrupted."""

    def __init__(self, owner, busy):
        self.owner, self.busy, self.hit = owner, busy, None

    def __call__(self, ctx):
        try:
            self.busy(self.owner)
            while True:
                pass
        except Killed:
            self.hit = self.owner.state
            raise


@pytest.mark.parametrize("busy", BUSY, ids=lambda busy: busy.__name__)
def test_an_interrupt_waits_until_the_thread_holds_nothing(
    busy, owner, launch, recorder, monkeypatch
):
    """It comes when the thread has given back what it holds, and then it comes."""
    monkeypatch.setattr("otpy.core.machine.INTERRUPT_GRACE", HANG)
    looks = count_looks(monkeypatch)
    child = Loop(owner, busy)
    app = launch(supervisor("app", children=[thread(child, id="a", shutdown="brutal_kill")]))
    app._tree.directory["app"].machine.grace = HANG
    assert owner.inside.wait(HANG)
    killer = threading.Thread(target=app.terminate_child, args=("a",))
    killer.start()
    wait_until(lambda: len(looks) > 3)
    assert (child.hit, owner.state, set(looks)) == (None, "torn", {False})
    owner.leave.set()
    killer.join(HANG)

    assert child.hit == "whole"
    assert recorder.of(Unstopped) == []
    assert LOCK.acquire(timeout=HANG)
    LOCK.release()


def count_looks(monkeypatch):
    """Return a list that gets what each look at a thread finds."""
    looks, look = [], interrupt.is_good

    def counted(frame, at):
        looks.append(look(frame, at))
        return looks[-1]

    monkeypatch.setattr(interrupt, "is_good", counted)
    return looks


def test_a_thread_that_always_holds_something_is_unstopped(owner, launch, recorder):
    """It is named, and not interrupted; when it gives back what it holds, it is."""
    child = Loop(owner, with_attribute)
    app = launch(supervisor("app", children=[thread(child, id="a", shutdown=0.0)]))
    assert owner.inside.wait(HANG)
    app.terminate_child("a")
    assert "in hold" in recorder.wait_for(Unstopped, "app/a").stack
    assert (child.hit, owner.state) == (None, "torn")
    owner.leave.set()

    wait_until(lambda: child.hit == "whole")


def polls_a_queue(owner):
    owner.inside.set()
    while True:
        with contextlib.suppress(queue.Empty):
            owner_queue.get(timeout=0.01)


def polls_an_event(owner):
    event = threading.Event()
    owner.inside.set()
    while True:
        event.wait(0.01)


def polls_its_condition(owner):
    with owner.condition:
        owner.inside.set()
        while True:
            owner.condition.wait(0.01)


def sleeps(owner):
    owner.inside.set()
    while True:
        time.sleep(0.01)


def opens_files(owner):
    owner.inside.set()
    while True:
        with open(__file__) as file:  # noqa: PTH123
            file.read(1)
            time.sleep(0.01)


def logs(owner):
    logger = logging.getLogger("of this test")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    owner.inside.set()
    while True:
        logger.info("again")


owner_queue = queue.Queue()

INTERRUPTIBLE = [polls_a_queue, polls_an_event, polls_its_condition, sleeps, opens_files, logs]


@pytest.mark.parametrize("busy", INTERRUPTIBLE, ids=lambda busy: busy.__name__)
def test_a_thread_that_waits_without_holding_anything_is_interrupted(busy, owner, launch, recorder):
    """To wait for a condition gives its lock away; other contexts than locks are no reason to wait."""
    child = Loop(owner, busy)
    app = launch(supervisor("app", children=[thread(child, id="a", shutdown="brutal_kill")]))
    app._tree.directory["app"].machine.grace = HANG
    assert owner.inside.wait(HANG)
    app.terminate_child("a")

    assert child.hit == "whole"
    assert owner.condition.acquire(timeout=HANG)
    owner.condition.release()
    owner_queue.put(1)
    assert owner_queue.get(timeout=HANG) == 1


def by_with(lock):
    with lock:
        pass


def by_its_name(lock):
    lock.acquire()
    lock.release()


def by_another_name(lock):
    take = lock.acquire
    take()
    lock.release()


def by_an_attribute(lock):
    here = by_an_attribute
    here.take = lock.acquire
    here.take()
    lock.release()


def by_a_partial(lock):
    take = functools.partial(lock.acquire)
    take()
    lock.release()


def by_an_item(lock):
    ways = [lock.acquire]
    ways[0]()
    lock.release()


def by_what_a_call_returns(lock):
    operator.methodcaller("acquire")(lock)
    lock.release()


def by_a_stack(lock):
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock)


WAYS = [
    by_with,
    by_its_name,
    by_another_name,
    by_an_attribute,
    by_a_partial,
    by_an_item,
    by_what_a_call_returns,
    by_a_stack,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_thread_that_is_about_to_take_a_lock_is_not_interrupted(way, monkeypatch):
    """When it has got the lock, nothing would release it; after a ``with``: since Python 3.14."""
    lock = threading.Lock()
    codes = {way.__code__, contextlib.ExitStack.enter_context.__code__}
    monkeypatch.setattr(moments, "WRAPPERS", {threading.Thread.run.__code__})
    monkeypatch.setattr(moments, "GUARDED", ())
    taking = threading.Thread(target=way, args=(lock,))
    with lock:
        taking.start()
        wait_until(lambda: sys._current_frames()[taking.ident].f_code in codes)
        time.sleep(0.05)  # it may not wait yet; too early, the test proves less
        frame = sys._current_frames()[taking.ident]
        is_good = moments.is_good(frame, frame.f_lasti)
    taking.join(HANG)

    assert not is_good


KILLED_WHILE_IT_WAITS = """
import threading, otpy
lock, waits = threading.Lock(), threading.Event()

def work(ctx):
    waits.set()
    lock.acquire()
    lock.release()

lock.acquire()
app = otpy.start(otpy.supervisor("app", children=[otpy.thread(work, shutdown="brutal_kill")]), log=False)
waits.wait()
app.terminate_child("work")
[left] = app.stop().unstopped
[stuck] = [one for one in threading.enumerate() if one.name == "app/work"]
lock.release()
stuck.join(20)
print(left.path, lock.acquire(blocking=False))
"""


def test_a_thread_that_takes_a_lock_is_not_interrupted_where_code_has_no_columns():
    """Python can be told to keep no positions of instructions within lines, to save memory."""
    ran = python(KILLED_WHILE_IT_WAITS, flags=("-X", "no_debug_ranges"))

    assert ran.out.split() == ["app/work", "True"]


def test_code_that_cannot_be_read_is_no_good_moment(monkeypatch):
    """Then the thread is not interrupted there, and nothing else happens."""
    monkeypatch.setattr(moments, "_is_good", lambda frame, at: 1 / 0)

    assert moments.is_good(sys._getframe(), 0) is False


def test_looks_become_rare(monkeypatch):
    """A thread that is never in a good moment costs less and less; one that has ended is forgotten."""
    reminders, gate = [], interrupt.Gate()
    now = [0.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    interrupts = interrupt.Interrupts(
        lambda seconds, look: reminders.append((seconds, look)), lambda look: look()
    )
    opened, go = threading.Event(), threading.Event()

    def body():
        with LOCK:
            gate.open()
            opened.set()
            go.wait(HANG)
        gate.close()

    target = threading.Thread(target=body)
    target.start()
    assert opened.wait(HANG)
    interrupts.add(gate)
    pauses = []
    while len(pauses) < 1000 and now[0] < 100:
        seconds, look = reminders.pop()
        pauses.append(seconds)
        now[0] += seconds
        look()
    go.set()
    target.join(HANG)

    assert len(pauses) < 600
    assert max(pauses) > 10
    now[0] += 1000
    reminders.pop()[1]()
    assert (interrupts._waiting, reminders) == ({}, [])
    interrupts.add(interrupt.Gate())
    interrupts.close()
    assert not interrupts._waiting


KILLED_AGAIN_AND_AGAIN = """
import io, logging, os, queue, sys, threading, time
from otpy import start, supervisor, thread

logger = logging.getLogger("work")
logger.propagate = False
logger.addHandler(logging.StreamHandler(io.StringIO()))
logger.setLevel(logging.INFO)
shared = queue.Queue()

def use_import():
    sys.modules.pop("xxsubtype", None)
    import xxsubtype

def use_queue():
    shared.put(1)
    shared.get(timeout=5)

use = {"logging": lambda: logger.info("working"), "queue": use_queue, "import": use_import}[sys.argv[1]]

def work(ctx):
    while True:
        use()

def other():
    while ask.acquire():
        try:
            use()
        except Exception:
            pass
        done.release()

ask, done = threading.Semaphore(0), threading.Semaphore(0)
threading.Thread(target=other, daemon=True).start()
app = start(
    supervisor("app", intensity=10**6, children=[thread(work, shutdown="brutal_kill")]), log=False, max_unstopped=10**6
)
for kill in range(int(sys.argv[2])):
    time.sleep(0.001)
    app.terminate_child("work")
    ask.release()
    if not done.acquire(timeout=10):
        print("locked after", kill + 1, flush=True)
        os._exit(1)
    app.restart_child("work")
print("fine", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("what", ["logging", "queue"])
def test_what_others_use_works_on_when_children_are_killed_in_it(what):
    """A few kills; the slow test below has more."""
    assert python(KILLED_AGAIN_AND_AGAIN, what, 4).out == "fine\n"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["logging", "queue", "import"])
def test_what_others_use_works_on_after_hundreds_of_kills(what):
    """The same, for longer."""
    if what == "import" and "xxsubtype" not in sys.builtin_module_names:
        pytest.skip("there is no small built-in module to import")
    assert python(KILLED_AGAIN_AND_AGAIN, what, 300, hang=500).out == "fine\n"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="garbage is collected elsewhere there")
def test_no_garbage_is_collected_amid_a_look_at_all_threads():
    """CPython 3.11 crashes if a finalizer of the program lets another thread go on then."""
    is_on, is_on_after = stacks.uncollected(gc.isenabled), gc.isenabled()
    gc.disable()
    try:
        was_off = not stacks.uncollected(gc.isenabled)
        is_left = not gc.isenabled()
    finally:
        gc.enable()

    assert (is_on, is_on_after, was_off, is_left) == (False, True, True, True)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="garbage is collected elsewhere there")
def test_no_other_thread_turns_the_collector_on_amid_a_look():
    """Another supervisor may have looked as well, and put back what was before."""
    over = threading.Event()

    def turn_on():
        while not over.is_set():
            gc.enable()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    other = threading.Thread(target=turn_on)
    other.start()
    try:
        seen = {stacks.uncollected(gc.isenabled) for _ in range(20_000)}
    finally:
        sys.setswitchinterval(before)
        over.set()
        other.join()
        gc.enable()

    assert seen == {False}


def test_all_looks_at_threads_go_through_one_function():
    """No other code asks for the frames of all threads: but ``_raise_at``, and that is held off as well."""
    root = pathlib.Path(otpy.__file__).parent
    texts = {path.name: path.read_text() for path in root.rglob("*.py")}
    asks = {name for name, text in texts.items() if "sys._current_frames" in text}

    assert asks == {"interrupt.py", "stacks.py"}
    assert texts["interrupt.py"].count("sys._current_frames") == 1


class Local:
    """What a function of another thread holds."""


@pytest.mark.parametrize("look", ["frames", "raise_at"])
def test_a_look_keeps_no_local_of_another_thread(look):
    """Its finalizer would run on a thread that is not its own, when garbage is collected."""
    go, gone = threading.Event(), []

    def hold():
        local = Local()
        gone.append(weakref.ref(local))
        here.set()
        go.wait(HANG)

    here = threading.Event()
    other = threading.Thread(target=hold)
    gc.disable()
    try:
        other.start()
        here.wait(HANG)
        if look == "frames":
            stacks.frames()
        else:
            interrupt._raise_at([(other.ident, sys._getframe(), -1)])
        go.set()
        other.join(HANG)
        is_gone = gone[0]() is None
    finally:
        gc.enable()

    assert is_gone
