"""The process of a callable: its start, its end, and the end of its descendants.

Laws:
1. The number of a process is used only while it is certainly ours: until it is reaped.
   A thread that sends a signal and the thread that reaps take the lock of the child
   (keeper.py), which no thread holds for longer than a system call takes.
2. The process leads a session and a group of its own, from before its first
   instruction. Signals go to the group.
3. When the process has ended, all its descendants are killed (descendants.py). What
   cannot be ended is returned as ``Left``.
4. The new interpreter loads no module from the working directory. It gets ``sys.path``
   of the parent process before it loads any module of the user's.

Why not multiprocessing.Process: such a process has no session of its own before its
first instruction. Each of its starts reaps the processes of all others. The exit of the
interpreter waits for it; with ``daemon`` it can have no processes itself. But its way
to make the new interpreter like this one is used here, and so are its pickler and its
resource tracker: its queues, locks and shared memory may be arguments.

All of this runs on the keeper's thread, except ``kill``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import secrets
import signal
import subprocess
import time
from importlib.machinery import PathFinder
from multiprocessing import resource_tracker
from typing import Any

from otpy.children.callable import epitaph, far_side, protocol
from otpy.children.callable.wires import Wires
from otpy.runtime import descendants, posix
from otpy.runtime.descendants import Family, Seen
from otpy.values import running

BOOT = """\
import importlib.util as util, sys
from importlib.machinery import PathFinder
for name in {modules!r}:
    spec = PathFinder.find_spec(name, [{home!r}])
    module = sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(module)
module.main({end}, {dump}, {tracker})
"""
"""What the interpreter is told to run.

It loads the far side under its own names, but without the packages around it.
"""

MODULES = tuple(module.__name__ for module in (protocol, epitaph, far_side))
"""The files of the far side, in the order in which they need each other."""

LINGER = 0.5
"""For how many seconds at most an end waits until killed descendants have gone."""

AGAIN = 0.005
"""Seconds between two looks at them."""


@functools.cache
def _home() -> str:
    """Return the directory of the far side, perhaps one in a zip file.

    Raises:
        posix.NoPython: The far side was loaded from a place that another interpreter
            would not find.
    """
    home = os.path.dirname(getattr(far_side, "__file__", None) or "")  # noqa: PTH120
    if PathFinder.find_spec(far_side.__name__, [home]) is None:
        raise posix.NoPython(
            "otpy is neither in a directory nor in a zip file: no other Python can load it"
        )
    return home


def _python(*args: str) -> list[str]:
    """Return the command that starts an interpreter like this one.

    That imports nothing from its working directory.

    Raises:
        posix.NoPython: No Python can be started here.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return posix.python_command(*flags, "-P", *args)


def tracker_descriptor() -> int:
    """Return the descriptor of multiprocessing's resource tracker; start it if need be.

    The tracker belongs to the parent process: one of a callable would die with it, and
    remove nothing. multiprocessing would start it with the working directory in its
    path. Its number is not noted there, as in a process that has inherited the tracker:
    some versions would wait for its end when the interpreter exits, and a callable that
    does not stop keeps the tracker alive till then.

    Raises:
        OSError: The system refuses it.
    """
    tracker: Any = resource_tracker._resource_tracker
    with tracker._lock:
        if tracker._fd is None or not tracker._check_alive():
            read, write = posix.pipe()
            with contextlib.ExitStack() as undo:
                undo.callback(os.close, write)
                with io.FileIO(read):
                    boot = f"from multiprocessing.resource_tracker import main; main({read})"
                    popen = posix.start_process(
                        _python("-c", boot), stdout=None, stderr=None, pass_fds=[read]
                    )
                popen.returncode = 0  # it outlives this process: its Popen must not wait for it
                undo.pop_all()
            if tracker._fd is not None:
                os.close(tracker._fd)
            tracker._fd, tracker._pid = write, None
        descriptor: int = tracker._fd
    return descriptor


@running(frozen=True)
class Left:
    """Descendants of a callable that could not be ended; a stray of the tree."""

    processes: tuple[Seen, ...]

    @property
    def alive(self) -> bool:
        return any(
            (now := descendants.look(one.pid)) and now.lives and now.started == one.started
            for one in self.processes
        )

    def stack(self) -> str:
        return "".join(f"{descendants.describe(one.pid)}\n" for one in self.processes)


class Process:
    """A process that leads its group. Its number is used only until it is reaped.

    ``kill`` and ``reap`` must not be called at the same time.

    Attributes:
        pid: Its number; None: it was not started.
    """

    def __init__(self) -> None:
        self._family = Family(secrets.token_hex(12).encode())
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    def start(self, path: str, wires: Wires, descriptors: list[int]) -> None:
        """Start it.

        Args:
            path: Of the child; for people who read a list of processes.
            wires: They must be laid.
            descriptors: The descriptors that its parcel wants it to inherit.

        Raises:
            OSError: The system refuses it, or no Python can be started here.
        """
        tracker, end, dump = tracker_descriptor(), wires.far.fileno(), wires.dump.fileno()
        boot = BOOT.format(modules=MODULES, home=_home(), end=end, dump=dump, tracker=tracker)
        # Other threads may change the environment just now, and a walk through it would
        # fail then. To copy the dict below it is one step.
        environment = vars(os.environb)["_data"].copy()
        # With it the interpreter would go on after the callable, or end with 1.
        environment.pop(b"PYTHONINSPECT", None)
        self._family.mark(environment)
        self._popen = posix.start_process(
            _python("-c", boot, path),
            env=environment,
            stdin=wires.stdin.fileno(),
            stdout=None,
            stderr=None,
            pass_fds={end, dump, tracker, *descriptors},
        )

    def kill(self) -> None:
        """Kill the group; on any thread, under the lock of the child."""
        if self.pid is not None:
            posix.signal_group(self.pid, signal.SIGKILL)

    def watch_death(self, stack: contextlib.ExitStack) -> int | None:
        """Return a descriptor that can be read when it is dead; *stack* closes it.

        None: the system has no such thing, or other code has reaped the process.
        """
        try:
            death = posix.open_process(self._started.pid)
        except ProcessLookupError:
            return None
        if death is not None:
            stack.callback(os.close, death)
        return death

    def await_exit(self) -> posix.Ended:
        """Wait until it has ended."""
        return posix.await_exit(self._started.pid)

    def end_descendants(self) -> Left | None:
        """Kill all that it has started; return what is left.

        The process has ended, and was not reaped here, so its number is still its own.
        """
        self._family.leader = self._started.pid
        if posix.is_strange(self._family.leader):
            return None
        self.kill()
        deadline, killed = time.monotonic() + LINGER, set()
        while living := self._family.living():
            if time.monotonic() > deadline:
                return Left(tuple(living))
            for one in living:
                descendants.send(one, signal.SIGKILL)
                killed.add((one.pid, one.started))
            time.sleep(AGAIN)
        # The system may have handed some of them to this process, which must reap them.
        if killed or os.getpid() == 1:
            for pid in descendants.adopted(self._family.token, killed):
                posix.reap(pid)
        return None

    def reap(self, ended: posix.Ended) -> int | None:
        """Reap it; return its exit code, None if other code has reaped it.

        Args:
            ended: What ``await_exit`` has returned. A code in it counts: other code
                that waits for all children may reap the process before this does.
        """
        popen, code = self._started, ended.code
        if not ended.is_reaped and (reaped := posix.reap(popen.pid)) is not None and code is None:
            code = reaped.code
        popen.returncode = code or 0  # its Popen must not wait for it
        return code

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "it was started"
        return self._popen
