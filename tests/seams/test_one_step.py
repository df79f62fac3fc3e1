"""``start``, ``run``, ``stop``, ``subscribe`` and ``aio.start`` leave nothing behind.

A fresh interpreter makes one trial per line of otpy's that the calling thread reaches:
the tracer raises there. Then nothing of the call may be left.
"""

import pytest

from tests.seams.kit import python

TRIALS = """
import asyncio, inspect, linecache, os, signal, socket, sys, threading, time, warnings
import otpy
from otpy import StartError, aio, supervisor, thread
from otpy.runtime import account, threads

kind, call, stride, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
HERE = os.path.dirname(otpy.__file__)
STOPS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
HANG = 20.0


class Injected(Exception):
    pass


class Line:
    '''Raises at one line of otpy's, the n-th that is reached while it traces.'''

    def __init__(self, nth):
        self.nth, self.left, self.place, self.frames = nth, nth, "", []

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line" and self.left > 0:
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                self.place = f"{frame.f_code.co_qualname}: {source}"
                self.frames = [one.frame.f_code.co_qualname for one in inspect.getouterframes(frame, 0)]
                self.strike()
        return self.trace

    def strike(self):
        if kind == "signal" or (kind == "any" and self.nth % 3 == 0):
            signal.raise_signal(signal.SIGUSR1)
        raise KeyboardInterrupt if kind == "interrupt" or (kind == "any" and self.nth % 3 == 1) else Injected


def on_signal(number, frame):
    raise Injected


def until(condition):
    deadline = time.monotonic() + HANG
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def idle(ctx):
    ctx.wait_stop()


def brief(ctx):
    pass


def signalled(ctx):
    os.kill(os.getpid(), signal.SIGTERM)
    ctx.wait_stop()


IDLE = supervisor("app", children=[supervisor("sub", children=[thread(idle, id="a")]), thread(idle, id="b")])
BRIEF = supervisor("app", auto_shutdown="any_significant",
                   children=[thread(idle), thread(brief, restart="transient", significant=True)])
SIGNALLED = supervisor("app", children=[thread(idle), thread(signalled)])


def start(line):
    with line:
        app = otpy.start(IDLE, log=False)
    app.stop()


def run(line):
    with line:
        otpy.run(BRIEF, log=False)


def run_until_a_signal(line):
    with line:
        otpy.run(SIGNALLED, log=False)


def stop(line):
    app = otpy.start(IDLE, log=False)
    try:
        with line:
            app.stop(10)
    finally:
        if "Supervisor._stop" not in line.frames and "return self._stop" not in line.place:
            app.stop()  # it came before the order


def subscribe(line):
    app = otpy.start(IDLE, log=False)
    try:
        with line:
            app.subscribe(print)
            app.unsubscribe(print)
    finally:
        app.stop()


def aio_start(line):
    async def main():
        with line:
            async with aio.start(IDLE, log=False):
                pass
    asyncio.run(main())


def descriptor(number):
    try:
        return number, os.fstat(number).st_ino
    except OSError:
        return None


def state():
    '''All that a call could leave behind in the process.'''
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return {
        "threads": sorted(one.name for one in threading.enumerate()),
        "entries": [one.name for one in threads.entries()] + [one.name for one in threads._undecided],
        "trees": [one.root for one in account._running],
        "descriptors": [*filter(None, map(descriptor, range(64)))],
        "handlers": [signal.getsignal(number) for number in STOPS],
        "wakeup": wakeup,
    }


def trial(nth):
    line = Line(nth)
    try:
        globals()[call](line)
    except (Injected, KeyboardInterrupt):
        pass
    return line


signal.signal(signal.SIGUSR1, on_signal)
mine, other = socket.socketpair()
mine.setblocking(False)
signal.set_wakeup_fd(mine.fileno())
warnings.simplefilter("ignore")  # of a socket that is closed by the collector
assert trial(10**9).place == ""  # all is imported
until(lambda: len(threading.enumerate()) == 1)
before, tried = state(), 0
for nth in range(first, 10**9, stride):
    line = trial(nth)
    if not line.place:
        break
    tried += 1
    if not until(lambda: state() == before):
        now = state()
        print("LEFT", nth, line.place, {key: now[key] for key in now if now[key] != before[key]}, flush=True)
        os._exit(1)
    other.setblocking(False)
    try:
        other.recv(4096)
    except BlockingIOError:
        pass
print("TRIED", tried)
"""

CALLS = ["start", "run", "run_until_a_signal", "stop", "subscribe", "aio_start"]


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_wherever_an_exception_interrupts_a_call(call):
    """Some lines: no thread, tree, descriptor, signal handler or wakeup descriptor is
    left.
    """
    ran = python(TRIALS, "any", call, 5, 1 + CALLS.index(call))

    assert int(ran.out.split()[1]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["exception", "interrupt", "signal"])
def test_nothing_is_left_whichever_line_is_interrupted(call, kind):
    """The same at each line, and by a signal handler that raises."""
    ran = python(TRIALS, kind, call, 1, 1, hang=110)

    assert int(ran.out.split()[1]) > 50
