"""The guard: what it finds and where, what it lets pass, its configuration, and the three ways to run it."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import lint
from tests import pages

ROOT = Path(__file__).parent.parent
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

ALLOWED = {
    # where the comment is: (source, findings)
    "in the line": (THREAD + "Thread()  # otpy: allow it is short", []),
    "with a dash": (THREAD + "Thread()  # otpy: allow - it is short", []),
    "with an issue": (THREAD + "Thread()  # otpy: allow #12", []),
    "without a space": (THREAD + "Thread()  #otpy:allow: it is short", []),
    "after another comment": (THREAD + "Thread()  # noqa: S1  # otpy: allow it is short", []),
    "before another comment": (THREAD + "Thread()  # otpy: allow it is short  # noqa: S1", []),
    "two at once": (THREAD + "Thread(daemon=True)  # otpy: allow it is short", []),
    "in the first line": (
        THREAD + "t = Thread(  # otpy: allow it is short\n  target=f,\n  daemon=True,\n)",
        [],
    ),
    "in the last line": (
        THREAD + "t = Thread(\n  target=f,\n  daemon=True,\n)  # otpy: allow it is short",
        [],
    ),
    "in the line of one": (
        THREAD + "t = Thread(\n  daemon=True,  # otpy: allow it is short\n)",
        ["2:5 OTP001"],
    ),
    "in the line of one of two": (
        THREAD + "[\n  Thread(),  # otpy: allow it is short\n  Thread(),\n]",
        ["4:3 OTP001"],
    ),
    "in a class's line": (
        THREAD + "class A(Thread):  # otpy: allow it is short\n    daemon = True",
        ["3:5 OTP102"],
    ),
    "in the first line of a with": (
        POOL + "with f(  # otpy: allow it ends\n  Pool()\n): Pool()",
        ["4:4 OTP005"],
    ),
    "in the last line of a body": (
        THREAD + "if Thread():\n    f()  # otpy: allow no",
        ["2:4 OTP001", "3:10 OTP903"],
    ),
    "in the last line of a match": (
        THREAD + "match Thread():\n    case x: f()  # otpy: allow no",
        ["2:7 OTP001", "3:18 OTP903"],
    ),
    "in the line before": (THREAD + "# otpy: allow no\nThread()", ["2:1 OTP903", "3:1 OTP001"]),
    "in a string": (THREAD + "Thread('# otpy: allow no')", ["2:1 OTP001"]),
    "in a string of many lines": (THREAD + "Thread('''\n# otpy: allow no\n''')", ["2:1 OTP001"]),
    "quoted": (THREAD + "Thread()  # write '# otpy: allow reason'", ["2:1 OTP001"]),
    "misspelt": (THREAD + "Thread()  # otpy: allowed, I hope", ["2:1 OTP001"]),
    "without a reason": (THREAD + "Thread()  # otpy: allow", ["2:1 OTP001", "2:11 OTP902"]),
    "without a word": (THREAD + "Thread()  # otpy: allow -- :", ["2:1 OTP001", "2:11 OTP902"]),
    "without a reason, with a comment": (
        THREAD + "Thread()  # otpy: allow  # noqa",
        ["2:1 OTP001", "2:11 OTP902"],
    ),
    "in the line of the call": (
        THREAD + "[\n  Thread(  # otpy: allow it is short\n    daemon=True,\n  ),\n  Thread(),\n]",
        ["6:3 OTP001"],
    ),
    "left over": ("x = 1  # otpy: allow it is short", ["1:8 OTP903"]),
    "left over, without a reason": ("x = 1  # otpy: allow", ["1:8 OTP902"]),
    "for what is allowed": (
        "from threading import Timer\nTimer(1, f)  # otpy: allow it is short",
        ["2:14 OTP903"],
    ),
}


def found(source, **options):
    lines = source.replace("\r\n", "\n").replace("\r", "\n").splitlines(keepends=True)
    lines = re.findall(r"[^\n]*\n|[^\n]+$", "".join(lines))
    findings = lint.examine("a.py", ast.parse("".join(lines)), lines, lint.Config(ROOT, **options))
    return [f"{one.line}:{one.col} {one.code}" for one in findings]


@pytest.mark.parametrize(("source", "findings"), FOUND.values(), ids=FOUND)
def test_what_is_found(source, findings):
    assert found(source) == findings


@pytest.mark.parametrize("source", FINE.values(), ids=FINE)
def test_what_is_fine(source):
    assert found(source) == []


@pytest.mark.parametrize(("source", "findings"), ALLOWED.values(), ids=ALLOWED)
def test_what_a_comment_allows(source, findings):
    assert found(source) == findings


@pytest.mark.parametrize(
    ("source", "findings"),
    [
        ("import threading\nthreading.Timer(1, f)", ["2:1 OTP004"]),
        ("from threading import Timer as T\nclass U(T): pass\nU(1, f)", ["2:9 OTP004"]),
        ("from threading import Timer\nTimer(1, f)  # otpy: allow it is short", []),
    ],
)
def test_timers_can_be_found(source, findings):
    assert found(source, allow_timer=False) == findings


ROWS = {**FOUND, **{name: (source, []) for name, source in FINE.items()}}


@pytest.mark.parametrize("source", [source for source, _ in ROWS.values()], ids=ROWS)
def test_comments_and_strings_do_not_count(source):
    assert found("\n".join(f"# {line}" for line in re.split("[\r\n]+", source))) == []
    assert found(f"import threading\nx = {source!r}\n") == []


@pytest.mark.parametrize(("source", "findings"), ROWS.values(), ids=ROWS)
def test_what_is_around_it_does_not_matter(source, findings):
    """The same one block deeper: each finding one line further down and four columns to the right."""
    body = re.sub(r"^(?=[^\n])", "    ", re.sub("\r\n?", "\n", source), flags=re.MULTILINE)
    moved = [
        re.sub(r"(\d+):(\d+)", lambda at: f"{int(at[1]) + 1}:{int(at[2]) + 4}", one)
        for one in findings
    ]

    if '"""' not in source and "\x0c" not in source:
        assert found(f"if x:\n{body}\n    pass") == moved
        assert found(f"while x:\n{body}\n    pass") == moved


# Files


def checked(path, **options):
    return [
        f"{one.line}:{one.col} {one.code}"
        for one in lint.check(str(path), lint.Config(path.parent.resolve(), **options))
    ]


@pytest.mark.parametrize(
    ("content", "findings"),
    [
        (b"", []),
        (b"import threading\nthreading.Thread(\n", ["2:17 OTP901"]),
        (b"\xff", ["1:1 OTP901"]),
        (b"# coding: nonsense\n", ["1:1 OTP901"]),
        (b"# coding: rot13\n", ["1:1 OTP901"]),
        (b"# coding: ascii\nx = '\xe4'\n", ["1:1 OTP901"]),
        (b"# coding: latin-1\nimport threading\n'\xe4', threading.Thread()\n", ["3:6 OTP001"]),
        (b"\xef\xbb\xbfimport threading\nthreading.Thread()\n", ["2:1 OTP001"]),
        (b"import threading\rthreading.Thread()\r\n", ["2:1 OTP001"]),
        (b"x = 1\n\0", None),
        (b"(" * 5000, None),
        (b"-" * 200_000 + b"1", ["1:1 OTP901"]),
        (b"x" + b".y" * 200_000, ["1:1 OTP901"]),
        (
            b"x = '\\d'; assert (1, 2)\n",
            [],
        ),  # the parser warns of this, and warnings are errors here
        (b"import threading\n\\\n", None),
    ],
    ids=range(15),
)
def test_whatever_is_in_the_file(tmp_path, content, findings):
    """Where Python's versions differ in the place of an error, any place will do."""
    (path := tmp_path / "a.py").write_bytes(content)

    assert checked(path) == findings or (findings is None and checked(path)[0].endswith("OTP901"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"(", "'(' was never closed"),
        (b"# coding: ascii\n\xe4", "can't decode byte"),
        (b"# coding: rot13\n", "is not a text encoding"),
        (b"-" * 200_000 + b"1", "."),
        (b"(" * 100 + b"[" * 10_000, "."),
    ],
    ids=range(5),
)
def test_why_it_cannot_be_checked(tmp_path, content, why):
    (path := tmp_path / "a.py").write_bytes(content)
    [finding] = lint.check(str(path), lint.Config(tmp_path))

    assert re.fullmatch(
        f"cannot be checked: .*{re.escape(why) if why != '.' else why}.*", finding.message
    )


def test_depth_and_length_do_not_matter():
    """What the parser takes is checked, and in time that grows with the length only."""
    deep = "0" + "+(0" * 80 + ")" * 80
    chain = (
        "x = Thread\n"
        + "x = x.next()\nx()\n" * 2000
        + "".join(f"a{n + 1} = a{n}\n" for n in range(2000))
    )

    assert found(THREAD + f"Thread({deep})") == ["2:1 OTP001"]
    assert len(found(THREAD + "a0 = Thread\n" + chain + "a2000()")) == 2001


def test_what_cannot_be_read_is_a_finding(tmp_path):
    (tmp_path / "a.py").symlink_to(tmp_path / "nowhere.py")

    assert checked(tmp_path / "a.py") == ["1:1 OTP901"]


PIECES = [
    *"()[]:=,.@*\n\t #'\\\0é€",
    "\n    ",
    '"""',
    "import threading\n",
    "threading",
    "Thread",
    " as ",
    "T",
    "daemon",
]
PIECES += [
    "True",
    "class ",
    "def ",
    "lambda ",
    "for ",
    " in ",
    "return ",
    "with ",
    "Pool",
    POOL,
    THREAD,
    "# otpy: allow x",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("lint") / "a.py"


@given(
    content=st.binary()
    | st.lists(st.sampled_from(PIECES)).map(lambda pieces: "".join(pieces).encode())
)
def test_nothing_crashes_it(scratch, content):
    scratch.write_bytes(content)

    for one in lint.check(str(scratch), lint.Config(scratch.parent)):
        assert one.line > 0 < one.col
        assert one.code in lint.RULES


def test_the_standard_library():
    """A quarter of it. What greps as a thread and is found; and nothing that cannot be read."""
    top = Path(sysconfig.get_path("stdlib"))
    files = [*sorted(top.glob("*.py"))[::4], *(top / "concurrent").rglob("*.py")]
    findings = [one for path in files for one in lint.check(str(path), lint.Config(ROOT))]

    assert len(files) > 40
    assert ("thread.py", "OTP001") in {(Path(one.path).name, one.code) for one in findings}
    assert [one for one in findings if one.code == "OTP901"] == []
    for one in findings:
        line = Path(one.path).read_text("utf-8").split("\n")[one.line - 1]
        assert re.search("thread|Timer|daemon|Executor", line, re.IGNORECASE), str(one)


# The command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to be in; ``place(path, content)`` writes a file there."""
    monkeypatch.chdir(tmp_path)

    def write(path, content="import threading\nthreading.Thread()\n"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)

    return write


@pytest.fixture
def run(capsys):
    """Run the command: its exit status, the codes and files found, and the lines of its complaint."""

    def call(*arguments):
        try:
            status = lint.main(arguments)
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return (
            status,
            [re.sub(r":\d+:\d+: (\w+) .*", r" \1", line) for line in out.splitlines()],
            err.splitlines(),
        )

    return call


def test_findings_are_printed(place, capsys):
    place("a.py")

    assert lint.main(["a.py"]) == 1
    assert capsys.readouterr() == (f"a.py:2:1: OTP001 {lint.RULES['OTP001']}\n", "")


def test_nothing_found_is_status_0(place, run):
    place("a.py", "")

    assert run("a.py", ".") == (0, [], [])


def test_directories_are_walked(place, run):
    for path in [
        "b/c.py",
        "a.py",
        "b/a/d.py",
        "b/e.txt",
        ".hidden/f.py",
        "env/lib/g.py",
        "b/__pycache__/h.pyc",
    ]:
        place(path)
    place("env/pyvenv.cfg", "")

    assert run(".") == (1, ["a.py OTP001", "b/c.py OTP001", "b/a/d.py OTP001"], [])
    assert run("b/e.txt", "b", "./b/c.py") == (
        1,
        ["b/e.txt OTP001", "b/c.py OTP001", "b/a/d.py OTP001"],
        [],
    )
    assert run("env", ".hidden") == (1, ["env/lib/g.py OTP001", ".hidden/f.py OTP001"], [])


def test_a_directory_that_cannot_be_listed(place, run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    place("a/b.py")
    monkeypatch.setattr(os, "scandir", refuse)

    assert run("a") == (2, [], ["otpy.lint: [Errno 13] Permission denied: 'a'"])


@pytest.mark.parametrize("arguments", [["a.py", "nowhere"], ["--config", "nowhere.toml", "a.py"]])
def test_what_does_not_exist(place, run, arguments):
    place("a.py")
    status, findings, [complaint] = run(*arguments)

    assert (status, findings) == (2, [])
    assert "nowhere" in complaint


@pytest.mark.parametrize("arguments", [[], ["--wrong", "a.py"]])
def test_a_wrong_call(place, run, arguments):
    assert run(*arguments)[:2] == (2, [])


ALL = ["OTP001", "OTP101", "OTP903", "OTP102"]


@pytest.mark.parametrize(
    ("select", "codes"),
    [
        ("OTP", ALL),
        ("OTP0,OTP1", ALL),
        ("OTP001", ["OTP001", "OTP903"]),
        ("OTP1", ["OTP101", "OTP903", "OTP102"]),
        ("OTP002, OTP102", ["OTP903", "OTP102"]),
        ("OTP9", ["OTP903"]),
    ],
)
def test_rules_are_selected(place, run, select, codes):
    """An allow comment is not left over because what it allows is not selected."""
    place(
        "a.py",
        THREAD
        + "Thread(daemon=True)\nx = 1  # otpy: allow it was short\nx.daemon = True\nThread()  # otpy: allow one",
    )

    assert run("--select", select, "a.py") == (1, [f"a.py {code}" for code in codes], [])


@pytest.mark.parametrize("select", ["", "OTP001,", "E501", "OTP0010", "otp001"])
def test_a_wrong_selection(place, run, select):
    place("a.py")
    status, findings, [complaint] = run("--select", select, "a.py")

    assert (status, findings) == (2, [])
    assert "no code begins with" in complaint


@pytest.mark.parametrize(
    ("glob", "exempt"),
    [
        ("src/a.py", ["src/a.py"]),
        ("src", ["src/a.py", "src/b/a.py"]),
        ("src/", ["src/a.py", "src/b/a.py"]),
        ("src/**", ["src/a.py", "src/b/a.py"]),
        ("src/*", ["src/a.py", "src/b/a.py"]),
        ("src/*.py", ["src/a.py"]),
        ("**/a.py", ["a.py", "src/a.py", "src/b/a.py"]),
        ("**/b/**", ["src/b/a.py"]),
        ("a.*", ["a.py"]),
        ("?.py", ["a.py"]),
        ("*", ["a.py", "src/a.py", "src/b/a.py"]),
        ("sr", []),
        ("[as].py", []),
        ("", []),
    ],
)
def test_files_are_exempt(place, run, glob, exempt):
    files = ["a.py", "src/a.py", "src/b/a.py"]
    for path in files:
        place(path)
    place("pyproject.toml", f"[tool.otpy.lint]\nexempt = ['{glob}']\n")
    status, findings, _ = run(*files)

    assert findings == [f"{path} OTP001" for path in files if path not in exempt]
    assert status == bool(findings)


def test_what_is_exempt_is_not_read(place, run):
    place("a.py", "a syntax error  # otpy: allow")
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['a.py']")

    assert run("a.py", ".") == (0, [], [])


def test_the_nearest_configuration_counts(place, run, monkeypatch, tmp_path):
    """Its globs are relative to its own directory."""
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['top/in/*.py', 'a.py']")
    place("other/pyproject.toml", "[tool.otpy.lint]\nallow-timer = false\nexempt = ['*', '**']")
    for path in ["top/in/a.py", "top/in/b/a.py", "top/a.py"]:
        place(path, "import threading\nthreading.Timer(threading.Thread())\n")
    monkeypatch.chdir(tmp_path / "top" / "in")

    assert run("a.py", "../in/a.py", "b", "../a.py")[1] == ["b/a.py OTP001", "../a.py OTP001"]
    assert run("--config", "../../other/pyproject.toml", "a.py")[1] == [
        "a.py OTP004",
        "a.py OTP001",
    ]
    assert run(str(tmp_path / "top" / "in" / "a.py"))[0] == 0


def test_no_configuration_is_needed(place, run, monkeypatch):
    place("a.py")
    monkeypatch.setattr(Path, "is_file", lambda _path: False)

    assert run("a.py") == (1, ["a.py OTP001"], [])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[tool.otpy.lint]\nexclude = []", "no key 'exclude'"),
        ("[tool.otpy.lint]\nallow_timer = true", "no key 'allow_timer'"),
        ("[tool.otpy.lint]\nexempt = 'tests'", "expected a list of globs"),
        ("[tool.otpy.lint]\nexempt = [1]", "expected a list of globs"),
        ("[tool.otpy.lint]\nallow-timer = 1", "expected true or false"),
        ("[tool.otpy]\nlint = 1", "lint = 1: expected a table"),
        ("tool = []", "tool = []: expected a table"),
        ("[tool", "pyproject.toml: "),
    ],
)
def test_a_wrong_configuration(place, run, content, complaint):
    place("a.py")
    place("pyproject.toml", content)
    status, findings, [told] = run("a.py")

    assert (status, findings) == (2, [])
    assert complaint in told


def test_others_settings_are_theirs(place, run):
    place("a.py", "")
    place("pyproject.toml", "[tool.otpy.other]\nexclude = 1\n[tool.ruff]\nexempt = 1\n")

    assert run("a.py") == (0, [], [])


# For others


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


def test_as_a_module(tmp_path):
    """Also where a stream cannot print a path, and a file has the name of a module that otpy needs."""
    bad, env = (
        tmp_path / "ä" / "attrs.py",
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    bad.parent.mkdir()
    bad.write_text("import threading\nthreading.Thread()\n")
    module = [sys.executable, "-P", "-m", "otpy.lint"]
    told = f"attrs.py:2:1: OTP001 {lint.RULES['OTP001']}\n"

    assert execute(*module, "attrs.py", cwd=bad.parent) == (1, told)
    status, output = execute(*module, ".", cwd=tmp_path, **env)
    assert (status, output[0], output[-len(told) :]) == (1, "\\", told)
    assert execute(*module, "nowhere", cwd=tmp_path) == (
        2,
        "otpy.lint: nowhere: no such file or directory\n",
    )
    assert execute(*module, str(ROOT / "otpy" / "core" / "restarts.py"), cwd=tmp_path) == (0, "")


def test_as_a_plugin_of_flake8(place, tmp_path):
    """If there is no such plugin here: install otpy anew, as ``pip install -e .`` does."""
    place(
        "bad.py",
        THREAD
        + "'ä', Thread(\n  daemon=True)\nThread()  # otpy: allow one\nThread()  # noqa: OTP001\n# otpy: allow x\n",
    )
    place("good.py", "import threading\nlock = threading.Lock()\n")
    place("exempt.py")
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['exempt.py']\n")
    flake8 = [sys.executable, "-m", "flake8", "--select", "OTP"]

    places = {"2:6": "OTP001", "3:3": "OTP101", "6:1": "OTP903"}
    findings = [f"./bad.py:{place}: {code} {lint.RULES[code]}\n" for place, code in places.items()]

    assert execute(*flake8, ".", cwd=tmp_path) == (1, "".join(findings))
    assert execute(*flake8, "good.py", "exempt.py", cwd=tmp_path) == (0, "")


def test_flake8_has_the_rules_on_by_default(place, tmp_path):
    """Beside its own."""
    place("bad.py", "import os\nimport threading\n\nthreading.Thread()\n")
    _, output = execute(sys.executable, "-m", "flake8", "bad.py", cwd=tmp_path)

    assert re.findall(r"^bad.py:(\d+):\d+: (\w+)", output, re.MULTILINE) == [
        ("1", "F401"),
        ("4", "OTP001"),
    ]


def commit(repository):
    """Make a repository of a directory, and return its only commit."""
    git = [
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "-c",
        "init.defaultBranch=main",
    ]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "all"],
    ):
        assert execute(*git, *command, cwd=repository) == (0, "")
    return execute(*git, "rev-parse", "HEAD", cwd=repository)[1].strip()


@pytest.mark.timeout(300)  # it makes an environment and installs otpy in it
def test_as_hooks_of_pre_commit(tmp_path):
    """In another repository, which takes the hooks from a commit of the files here as they are now."""
    hooks, other = tmp_path / "hooks", tmp_path / "other"
    shutil.copytree(ROOT / "otpy", hooks / "otpy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, hooks)
    (other / "tests").mkdir(parents=True)
    (other / ".pre-commit-config.yaml").write_text(
        f"repos: [{{repo: '{hooks.as_uri()}', rev: {commit(hooks)}, "
        "hooks: [{id: otpy-no-raw-threads}, {id: otpy-no-daemon-threads}]}]"
    )
    (other / "pyproject.toml").write_text("[tool.otpy.lint]\nexempt = ['tests']\n")
    (other / "raw.py").write_text("import threading\nthreading.Thread()\n")
    (other / "daemons.py").write_text("worker.daemon = True\n")
    (other / "attrs.py").write_text("hides = 'what otpy needs'\n")
    (other / "tests" / "exempt.py").write_text("import threading\nthreading.Thread(daemon=True)\n")
    commit(other)

    def run(*arguments):
        command = [sys.executable, "-m", "pre_commit", "run", "--color=never", *arguments]
        status, output = execute(*command, cwd=other, PRE_COMMIT_HOME=str(tmp_path / "home"))
        results = re.findall(r"^(no \w+ threads) .*?(\w+)$", output, re.MULTILINE)
        return status, results, re.findall(r"^(\S+:\d+:\d+: \w+)", output, re.MULTILINE), output

    status, results, findings, output = run("--all-files")
    assert results == [("no raw threads", "Failed"), ("no daemon threads", "Failed")], output
    assert findings == ["raw.py:2:1: OTP001", "daemons.py:1:1: OTP102"]
    assert status == 1
    assert run("--files", "raw.py")[1] == [
        ("no raw threads", "Failed"),
        ("no daemon threads", "Passed"),
    ]
    assert run("--files", "daemons.py")[1] == [
        ("no raw threads", "Passed"),
        ("no daemon threads", "Failed"),
    ]
    assert run("--files", "attrs.py", "tests/exempt.py")[0] == 0


# This repository


def test_this_repository_keeps_its_own_rules(run, monkeypatch):
    """All of it, with the exemptions in its pyproject.toml."""
    monkeypatch.chdir(ROOT)

    assert run(
        *(
            name
            for name in ("otpy", "tests", "examples", "benchmarks", "noxfile.py")
            if Path(name).exists()
        )
    ) == (0, [], [])


def test_only_two_modules_of_ours_need_an_exemption():
    """The one that starts threads, and what runs in a process of its own."""
    findings = [
        one
        for path in lint.files([ROOT / "otpy"])
        for one in lint.check(str(path), lint.Config(ROOT))
    ]

    found = sorted((Path(one.path).name, one.code) for one in findings)
    assert found == [("far_side.py", "OTP001"), ("threads.py", "OTP002")]


PAGE = pages.read("lint.md")


def test_the_page_has_every_rule_and_key():
    assert re.findall(r"^\| \[`(OTP\d+)`\]", PAGE, re.MULTILINE) == list(lint.RULES)
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(lint.KEYS)


def test_the_examples_of_the_page_are_right(tmp_path):
    """Each line of its code is found to break the rules that it bears, and no others."""
    code = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    (tmp_path / "page.py").write_text(code, "utf-8")
    borne = {
        f"{n} {rule}"
        for n, line in enumerate(code.split("\n"), 1)
        for rule in re.findall(r"OTP\d+", line)
    }
    findings = {
        re.sub(r":\d+", "", one) for one in checked(tmp_path / "page.py", allow_timer=False)
    }

    assert findings == borne
    assert {rule.split()[1] for rule in borne} == {
        rule for rule in lint.RULES if not rule.startswith("OTP9")
    }
