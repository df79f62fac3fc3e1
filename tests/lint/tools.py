"""Sources with what the linter finds in them, and how a test calls it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

from otpy import lint

ROOT = Path(__file__).parents[2]
POOL = "from concurrent.futures import ThreadPoolExecutor as Pool\n"
THREAD = "from threading import Thread\n"

FOUND = {
    # how it is written: (source, findings)
    "the module": ("import threading\nthreading.Thread()", ["2:1 OTP001"]),
    "the module by another name": ("import threading as t\nt.Thread()", ["2:1 OTP001"]),
    "the class": ("from threading import Thread\nThread()", ["2:1 OTP001"]),
    "the class by another name": ("from threading import Thread as T\nT()", ["2:1 OTP001"]),
    "all names": ("from threading import *\nThread()", ["2:1 OTP001"]),
    "an alias": ("import threading\nT = threading.Thread\nT()", ["3:1 OTP001"]),
    "an alias of an alias": (
        "import threading as t\nu = t\nT: type = u.Thread\nU = T\nU()",
        ["5:1 OTP001"],
    ),
    "two aliases at once": (
        "import threading as t\nA, T = int, t.Thread\nA()\nT()",
        ["4:1 OTP001"],
    ),
    "a walrus": ("import threading\nif T := threading.Thread:\n    T()", ["3:5 OTP001"]),
    "one of two": (THREAD + "T = int if big else Thread\nT()", ["3:1 OTP001"]),
    "the one or the other": (THREAD + "(given or Thread)()", ["2:1 OTP001"]),
    "out of a dict": (THREAD + "kinds = {'t': Thread}\nkinds['t']()", ["3:1 OTP001"]),
    "out of a loop": (THREAD + "for T in (Thread, int):\n    T()", ["3:5 OTP001"]),
    "out of a comprehension": (THREAD + "[T() for T in [Thread]]", ["2:2 OTP001"]),
    "perhaps": (
        "try:\n    from threading import Thread\nexcept ImportError:\n    Thread = None\nThread()",
        ["5:1 OTP001"],
    ),
    "for type checkers": (
        "if TYPE_CHECKING:\n    from threading import Thread\nThread()",
        ["3:1 OTP001"],
    ),
    "in a function": (
        "def f():\n    import threading\n    return threading.Thread()",
        ["3:12 OTP001"],
    ),
    "in a method": (
        THREAD + "class A:\n    def f(self):\n        Thread(target=self.f)",
        ["4:9 OTP001"],
    ),
    "a class's own name": (THREAD + "class A:\n    T = Thread\n    t = T()", ["4:9 OTP001"]),
    "a default": (THREAD + "def f(thread=Thread()): pass", ["2:14 OTP001"]),
    "a decorator": (THREAD + "@Thread(x)\ndef f(): pass", ["2:2 OTP001"]),
    "a lambda": (THREAD + "make = lambda: Thread()", ["2:16 OTP001"]),
    "an f-string": (THREAD + "f'{Thread()}'", ["2:4 OTP001"]),
    "a global name": (
        "def f():\n    global T\n    from threading import Thread as T\ndef g():\n    T()",
        ["5:5 OTP001"],
    ),
    "a nonlocal name": (
        THREAD
        + "def f():\n    T = 1\n    def g():\n        nonlocal T\n        T = Thread\n    T()",
        ["7:5 OTP001"],
    ),
    "a name of the module, from within a class": (
        THREAD + "class A:\n    Thread = 1\n    def f(self): Thread()",
        ["4:18 OTP001"],
    ),
    "started at once": (THREAD + "Thread(target=f).start()", ["2:1 OTP001"]),
    "two in one line": (THREAD + "Thread(); Thread()", ["2:1 OTP001", "2:11 OTP001"]),
    "columns are characters": (THREAD + "'ä€😀', Thread()", ["2:8 OTP001"]),
    "carriage returns and form feeds": (THREAD + "x = 1\r\n\x0cThread()\r", ["3:2 OTP001"]),
    "partial": (
        THREAD + "from functools import partial\npartial(Thread, target=f)",
        ["3:1 OTP001"],
    ),
    "map": (THREAD + "map(Thread, targets)", ["2:1 OTP001"]),
    "a subclass": (THREAD + "class W(Thread): pass\nW()", ["2:9 OTP002"]),
    "a subclass with other bases": (
        THREAD + "class W(A, Thread, metaclass=B): pass",
        ["2:12 OTP002"],
    ),
    "a subclass of a subclass": (
        THREAD + "class V(Thread): pass\nclass W(V): pass\nW()",
        ["2:9 OTP002", "3:9 OTP002"],
    ),
    "a subclass of the same name": (THREAD + "class Thread(Thread): pass", ["2:14 OTP002"]),
    "a low-level thread": ("import _thread\n_thread.start_new_thread(f, ())", ["2:1 OTP003"]),
    "low-level threads": (
        "from _thread import start_new, start_joinable_thread as go\nstart_new(f, ())\ngo(f)",
        ["2:1 OTP003", "3:1 OTP003"],
    ),
    "daemon": (THREAD + "Thread(daemon=True)", ["2:1 OTP001", "2:8 OTP101"]),
    "daemon in another line": (
        THREAD + "Thread(\n  target=f,\n  daemon=1,\n)",
        ["2:1 OTP001", "4:3 OTP101"],
    ),
    "daemon of a partial": (
        THREAD + "import functools as f\nf.partial(Thread, daemon=True)",
        ["3:1 OTP001", "3:19 OTP101"],
    ),
    "daemon of a timer": ("from threading import Timer\nTimer(1, f, daemon=True)", ["2:13 OTP101"]),
    "daemon of a subclass": (
        THREAD + "class W(Thread): pass\nW(daemon=True)",
        ["2:9 OTP002", "3:3 OTP101"],
    ),
    "daemon by super": (
        THREAD + "class W(Thread):\n    def __init__(self):\n        super().__init__(daemon=True)",
        ["2:9 OTP002", "4:26 OTP101"],
    ),
    "daemon by the base": (
        THREAD
        + "class W(Thread):\n    def __init__(self):\n        Thread.__init__(self, daemon=True)",
        ["2:9 OTP002", "4:31 OTP101"],
    ),
    "daemon of a class": (
        THREAD + "class W(Thread):\n    daemon = True",
        ["2:9 OTP002", "3:5 OTP102"],
    ),
    "no daemon of a class": (
        THREAD + "class W(Thread):\n    daemon = False\n    name = True",
        ["2:9 OTP002"],
    ),
    "several at once": (
        THREAD + "a, *b = Thread, 1, 2\nb, T = 1, Thread\nb(), T()",
        ["4:6 OTP001"],
    ),
    "daemon set": ("worker.daemon = True", ["1:1 OTP102"]),
    "daemon set on self": (
        THREAD + "class W(Thread):\n    def f(self): self.daemon = True",
        ["2:9 OTP002", "3:18 OTP102"],
    ),
    "daemon set with its type": ("self.worker.daemon: bool = True", ["1:1 OTP102"]),
    "daemon set on two": ("a.daemon = b.daemon = True", ["1:1 OTP102", "1:12 OTP102"]),
    "daemon set, among others": ("a.daemon, a.name = True, 'a'", ["1:1 OTP102"]),
    "daemon set the old way": ("worker.setDaemon(True)", ["1:1 OTP102"]),
    "a pool": (
        "import concurrent.futures\nconcurrent.futures.ThreadPoolExecutor()",
        ["2:1 OTP005"],
    ),
    "a pool by the package": (
        "from concurrent import futures as f\nf.ProcessPoolExecutor(2).submit(g)",
        ["2:1 OTP005"],
    ),
    "a pool by its module": (
        "from concurrent.futures.thread import ThreadPoolExecutor as T\nT()",
        ["2:1 OTP005"],
    ),
    "a pool of one's own": (POOL + "class P(Pool): pass\np = P()", ["3:5 OTP005"]),
    "a pool with a name": (POOL + "pool = Pool()\npool.submit(f)", ["2:8 OTP005"]),
    "a pool in an attribute": (
        POOL + "class A:\n    def f(self):\n        self.pool = Pool()",
        ["4:21 OTP005"],
    ),
    "a pool that is somebody else's business": (POOL + "serve(Pool())", ["2:7 OTP005"]),
    "another pool is shut down": (POOL + "a = Pool()\nb.shutdown()", ["2:5 OTP005"]),
    "another pool of the name is shut down": (
        POOL + "def f():\n    pool = Pool()\ndef g(pool):\n    pool.shutdown()",
        ["3:12 OTP005"],
    ),
    "another attribute is shut down": (
        POOL + "self.pool = Pool()\nself.server.shutdown()",
        ["2:13 OTP005"],
    ),
    "a pool that others see": (
        POOL + "class A:\n    def f(self):\n        self.p = Pool()\n        return self.p",
        ["4:18 OTP005"],
    ),
    "one of two pools": (POOL + "a, b = Pool(), Pool()\nb.shutdown()", ["2:8 OTP005"]),
}

FINE = {
    "nothing": "",
    "a timer": "import threading\nthreading.Timer(1, f)",
    "a subclass of a timer": "from threading import Timer\nclass T(Timer): pass",
    "other things of the module": "import threading\nthreading.Lock(), threading.current_thread(), threading.Event()",
    "an import": "from threading import Thread",
    "annotations": THREAD
    + "def f(a: Thread, *b: list[Thread]) -> Thread | None:\n    c: Thread = a\n    return c",
    "types": THREAD + "Threads = dict[str, Thread]\nThreads()",
    "isinstance": "import threading\nisinstance(x, threading.Thread) or issubclass(y, (int, threading.Thread))",
    "except": THREAD + "try: pass\nexcept Thread: pass",
    "a match": THREAD + "match x:\n    case Thread(name=n): pass",
    "a mention": THREAD
    + "kind = Thread\nregister(Thread)\nx is Thread\nThread.run(self)\nThread.start",
    "a comment": "import threading\n# threading.Thread(daemon=True)",
    "a docstring": '"""import threading; threading.Thread(daemon=True)\n\nworker.daemon = True\n"""',
    "a parameter": THREAD + "def f(Thread): return Thread()\ng = lambda Thread: Thread()",
    "other parameters": THREAD
    + "def f(*Thread, **kinds): Thread()\nasync def g(*, Thread): Thread()",
    "a local class": THREAD + "def f():\n    class Thread: pass\n    Thread()",
    "a local function": THREAD + "def f():\n    def Thread(): pass\n    Thread()",
    "a local coroutine": THREAD + "def f():\n    async def Thread(): pass\n    Thread()",
    "a local name in a with": THREAD + "def f():\n    with g() as Thread: Thread()",
    "one of several local names": THREAD + "def f():\n    Thread, *b = g()\n    Thread()",
    "a local variable": THREAD + "def f():\n    Thread = g()\n    Thread()",
    "a loop's variable": THREAD + "def f():\n    for Thread in things: Thread()",
    "another module": "from mine import Thread\nThread(daemon=True)",
    "a module beside this one": "from .threading import Thread\nfrom . import threading\nThread(), threading.Thread()",
    "all names of another module": "from os import *\nThread(daemon=True)",
    "a name that is never bound": "Thread()",
    "no arguments": "map()\nsuper().__init__(daemon=True)",
    "another class of the name": "class Thread: pass\nThread(daemon=True)",
    "an attribute of something": "gui.Thread()",
    "no daemon": "worker.daemon = False\nworker.setDaemon(False)\nworker.setDaemon()",
    "perhaps a daemon": "worker.daemon = is_daemon\nworker.setDaemon(is_daemon)",
    "asking": "if worker.daemon == True: print(worker.daemon)",
    "daemon of something else": "Server(daemon=True)\ndaemon = True\nclass A:\n    daemon = True",
    "a process": "import multiprocessing as m\np = m.Process(daemon=True)\np.daemon = True",
    "a process of a context": "import multiprocessing as m\nm.get_context('spawn').Process().daemon = True",
    "a subclass of a process": (
        "from multiprocessing import Process as P\nclass Q(P):\n    def f(self): self.daemon = True\nclass R(Q):\n"
        "    def f(self): self.daemon = True\np = R()\np.daemon = True"
    ),
    "with": POOL + "with Pool() as pool: pass",
    "with, among others": POOL + "with open(f) as g, Pool() as pool: pass",
    "with, later": POOL + "pool = Pool()\nwith pool: pass",
    "with, one or the other": POOL + "with Pool() if big else Pool(2) as pool: pass",
    "an exit stack": POOL + "stack.enter_context(Pool())",
    "an exit stack, later": POOL + "pool = Pool()\nstack.enter_context(pool)",
    "a shutdown": POOL + "pool = Pool()\ntry: pass\nfinally: pool.shutdown(wait=False)",
    "a shutdown for later": POOL + "pool = Pool()\natexit.register(pool.shutdown)",
    "a shutdown at once": POOL + "Pool().shutdown()",
    "a shutdown in a function": POOL + "pool = Pool()\ndef stop(): pool.shutdown()",
    "a shutdown of a global": POOL
    + "def start():\n    global pool\n    pool = Pool()\ndef stop(): pool.shutdown()",
    "a shutdown of a nonlocal": POOL
    + "def f():\n    pool = None\n    def g():\n        nonlocal pool\n        pool = Pool()\n    pool.shutdown()",
    "a shutdown of an attribute": (
        POOL
        + "class A:\n    def f(self): self.pool = given or Pool()\n    def g(self): self.pool.shutdown()"
    ),
    "a shutdown by another class": POOL
    + "class A:\n    def f(self): self.pool = Pool()\ndef g(a): a.pool.shutdown()",
    "a shutdown of a class's own": POOL
    + "class A:\n    pool = Pool()\n    def f(self): self.pool.shutdown()",
    "a shutdown by another name": POOL
    + "self.pool = Pool()\npool, self.pool = self.pool, None\npool.shutdown()",
    "a shutdown of many": POOL
    + "pools = [Pool() for _ in range(3)]\nfor pool in pools: pool.shutdown()",
    "a shutdown of many, in short": POOL
    + "pools = {'a': Pool()}\n[pools[key].shutdown() for key in pools]",
    "returned": POOL + "def f(): return Pool()",
    "returned, later": POOL + "def f():\n    pool = Pool()\n    return pool",
    "returned with others": POOL + "def f():\n    a, b = Pool(), Pool()\n    return {'a': a}, [b]",
    "a subclass from elsewhere": "from mine import Worker\nclass W(Worker): pass\nW(), Worker()",
    "put together at run time": "import threading\ngetattr(threading, 'Thr' + 'ead')(), globals()['Thread']()",
    "a class that travels": THREAD
    + "def f(kind): kind()\nf(Thread)\nself.kind = Thread\nself.kind()",
    "threads of libraries": (
        "import asyncio, multiprocessing.dummy as d, multiprocessing.pool as p\n"
        "async def f(): await asyncio.to_thread(g)\nd.Process(), p.ThreadPool()"
    ),
    "a factory": POOL
    + "import functools\nmake = lambda: Pool()\nmake_two = functools.partial(Pool, 2)",
}


ROWS = {**FOUND, **{name: (source, []) for name, source in FINE.items()}}


def found(source, **options):
    lines = source.replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True)
    lines = re.findall(r"[^\n]*\n|[^\n]+$", "".join(lines))
    findings = lint.examine("a.py", ast.parse("".join(lines)), lines, lint.Config(ROOT, **options))
    return [f"{one.line}:{one.col} {one.code}" for one in findings]


def checked(path, **options):
    return [
        f"{one.line}:{one.col} {one.code}"
        for one in lint.check(str(path), lint.Config(path.parent.resolve(), **options))
    ]


def execute(*command, cwd, **environment):
    """Run a command as a user would, whose Git knows nothing of this one. Return its exit status and what it says."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "PRE_COMMIT", "PYTHON"))
    }
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**own, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout
