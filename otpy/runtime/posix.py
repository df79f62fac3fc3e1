"""Where otpy meets the system: the module that makes descriptors and starts processes.

Laws:
1. What this process has inherited, or a library has changed, is set and not assumed:
   the numbers and the blocking mode of descriptors, the signal mask, the signals that
   are ignored, the class that makes sockets or processes.
2. Each descriptor made here is 3 or more and close-on-exec. So none of them takes the
   place of a closed stdin, stdout or stderr, neither here nor in a program that
   inherits it.
3. A process leads a session and a group of its own, with an empty signal mask, before
   its first instruction.
4. Nothing here runs Python between fork and exec: a process with threads must not.
5. The number of a process is used until the process is reaped, and not after: then
   another process may have it.

All functions may be called on any thread. ``start_process`` and ``await_exit`` may
block without a limit (a working directory on a file system that hangs). So a
supervisor's thread calls neither.

Libraries such as gevent and eventlet replace parts of ``socket``, ``subprocess``,
``os`` and ``threading``. Sockets here are made from ``_socket``, which they leave
alone, and processes by the ``Popen`` of the standard library. The ends of wires that
this process keeps do not block. It waits for them at a selector, which such a library
may replace by one of its own. The ends for other processes block.

This module knows no children, no trees and no threads of otpy. It stands below all
modules that run, and imports none of them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # ten times as fast: ``signal`` makes enums
import _socket
import _thread
import contextlib
import importlib.util
import io
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from otpy.values import Value, value

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
"""The flag of ``send`` that prevents SIGPIPE, where the system has it.

Not every process ignores that signal."""

LOWEST = 3
"""The first descriptor that is not stdin, stdout or stderr."""

SYSTEM: Any = sys.modules.get(os.name, os)
"""The functions of the system. A library may have replaced those in ``os``."""

close: Callable[[int], None] = SYSTEM.close
"""Close a descriptor now.

That of gevent may do it later. A process that waits for the end of a pipe then waits for
ever."""

TURN = 0.05
"""Seconds between looks for the end of a process that no thread may wait for."""


# Descriptors


class Socket(_socket.socket):
    """A socket as the system makes it, whatever ``socket.socket`` has become."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def lifted(fd: int) -> int:
    """Return *fd*; if it is 0, 1 or 2, close it and return a copy with a higher number.

    Raises:
        OSError: There are no more descriptors; *fd* is closed.
    """
    if fd >= LOWEST:
        return fd
    import fcntl  # not on Windows, where nothing is inherited by number

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    finally:
        close(fd)


def pipe() -> tuple[int, int]:
    """Make a pipe and return its ends, for reading and for writing.

    Both block, and are closed on exec.

    Raises:
        OSError: There are no more descriptors.
    """
    return _pair(*os.pipe())


def _pair(one: int, other: int) -> tuple[int, int]:
    with contextlib.ExitStack() as undo:
        undo.callback(close, other)
        one = lifted(one)
        undo.callback(close, one)
        undo.pop_all()
    with contextlib.ExitStack() as undo:
        undo.callback(close, one)
        other = lifted(other)
        undo.pop_all()
    return one, other


def _socket_of(fd: int) -> Socket:
    """Return the socket *fd*; it blocks, whatever ``socket.setdefaulttimeout`` says."""
    made = Socket(fileno=fd)
    made.setblocking(True)
    return made


def socket_pair() -> tuple[Socket, Socket]:
    """Make two sockets that are connected to each other.

    Both block, and are closed on exec.

    Raises:
        OSError: There are no more descriptors.
    """
    one, other = getattr(_socket, "socketpair", socket.socketpair)()  # Windows has the latter only
    first, second = _pair(one.detach(), other.detach())
    return _socket_of(first), _socket_of(second)


def datagram_socket() -> Socket:
    """Make a datagram socket of this machine (AF_UNIX), not bound yet.

    It blocks, and is closed on exec.

    Raises:
        OSError: There are no more descriptors.
    """
    return _socket_of(lifted(_socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM).detach()))


def open_file(path: str, flags: int, mode: int = 0o600) -> int:
    """Open *path* as ``os.open`` does.

    Raises:
        OSError: As ``os.open``.
    """
    return lifted(os.open(path, flags | getattr(os, "O_CLOEXEC", 0), mode))


def occupy(taken: list[io.FileIO]) -> None:
    """Have 0, 1 and 2 in use until ``vacate``, for descriptors that cannot be lifted.

    Args:
        taken: Gets the files that are opened for that, in the same step of C in which
            they are opened: a signal handler may raise between two steps.

    Raises:
        OSError: There are no more descriptors.
    """
    while not taken or taken[-1].fileno() < LOWEST:
        taken.extend(map(io.FileIO, (os.devnull,)))


def vacate(taken: list[io.FileIO]) -> None:
    """Close the files that ``occupy`` has opened.

    If an exception ends this amidst, a second call closes the rest.
    """
    while taken:
        taken[-1].close()
        taken.pop()


@contextlib.contextmanager
def occupied() -> Iterator[None]:
    """Have 0, 1 and 2 in use within a block."""
    taken: list[io.FileIO] = []
    try:
        occupy(taken)
        yield
    finally:
        vacate(taken)


def selector() -> selectors.BaseSelector:
    """Make a selector.

    Raises:
        OSError: There are no more descriptors.
    """
    with occupied():  # not every kind of it has a descriptor that could be lifted
        return selectors.DefaultSelector()


def pair_maker() -> Callable[[], tuple[Any, Any]]:
    """Return a function in C that makes two connected sockets; see ``occupy``.

    Where threads are those of gevent or eventlet, so are the sockets.
    """
    return (
        getattr(_socket, "socketpair", socket.socketpair)
        if has_real_threads()
        else socket.socketpair
    )


def open_process(pid: int) -> int | None:
    """Return a descriptor that can be read when the process *pid* has ended.

    Returns None where the system has no such descriptors, or no more to give.

    Raises:
        ProcessLookupError: There is no such process.
    """
    try:
        return lifted(os.pidfd_open(pid))
    except ProcessLookupError:
        raise
    except (OSError, AttributeError):
        return None


# How to start Python


class NoPython(OSError):
    """No other Python can be started from this process; the message says why."""


def python_command(*args: str) -> list[str]:
    """Return the command that starts Python here, with *args*.

    A path that was given to ``multiprocessing.set_executable`` is used, even where there
    seems to be no Python.

    Raises:
        NoPython: The program is frozen, or Python is embedded in another program: there
            ``sys.executable`` is the application itself, or nothing.
    """
    spawn = sys.modules.get("multiprocessing.spawn")
    chosen = os.fsdecode((spawn.get_executable() if spawn is not None else None) or "")
    executable = sys.executable or ""
    if chosen and chosen != executable:
        return [chosen, *args]
    if getattr(sys, "frozen", False):
        raise NoPython(
            "no Python can be started: the program is frozen, "
            "and sys.executable is the program itself"
        )
    if not executable:
        raise NoPython(
            f"no Python can be started: sys.executable is {sys.executable!r}; Python is embedded"
        )
    if not any(sys.orig_argv) and "py" not in Path(executable).name.lower():
        raise NoPython(f"no Python can be started: it is embedded in {executable}")
    if not os.access(executable, os.X_OK):
        raise NoPython(
            f"no Python can be started: sys.executable, {executable}, "
            "is not there or cannot be executed"
        )
    return [executable, *args]


# Starting processes

KEPT = frozenset(
    getattr(signal, name) for name in ("SIGHUP", "SIGINT", "SIGQUIT") if hasattr(signal, name)
)
"""The signals that stay ignored in a program if this process ignores them.

A shell or nohup ignores them on purpose in all that they start. They come from a
terminal, and a process with a session of its own has none."""

PYTHONS_OWN = ("SIGPIPE", "SIGXFSZ", "SIGXFZ")
"""The signals that Python itself ignores; ``Popen`` resets them."""

FRESH = """
import signal
def fresh(kept):
    for number in signal.valid_signals():
        if number not in kept and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
"""
"""Defines ``fresh(kept)``: ignore no signal but the numbers *kept*, and block none.

Each process that is started in Python runs it. So does a Python that becomes the program
(``EXEC``) where this process blocks or ignores signals: the system offers no other
moment for it."""

EXEC = (
    FRESH
    + """
import os, sys
report, kept, has_locale, *argv = sys.argv[1:]
fresh({int(number) for number in kept.split()})
if not has_locale:
    os.environb.pop(b"LC_CTYPE", None)  # Python may have set it for itself
try:
    os.set_inheritable(int(report), False)
    os.execvp(argv[0], argv)
except OSError as error:
    os.write(int(report), b"%d" % error.errno)
os._exit(127)
"""
)
"""Becomes a program, or writes the errno to a descriptor.

Run as ``python -c EXEC REPORT KEPT HAS_LOCALE PROGRAM …``."""


def start_process(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[bytes, bytes] | Mapping[str, str] | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = subprocess.DEVNULL,
    stderr: int | None = subprocess.DEVNULL,
    pass_fds: Iterable[int] = (),
    heard: Iterable[int] = (),
    unclean: Callable[[NoPython], object] = lambda error: None,
) -> subprocess.Popen[bytes]:
    """Start a process: it leads a session, blocks no signal, ignores KEPT ones only.

    Blocks until it is executed, which may take for ever where its file, or *cwd*, is on
    a file system that hangs.

    Args:
        argv: The program, looked for in ``PATH``, and its arguments.
        cwd: Its working directory; None: that of this process, even if that has been
            removed.
        env: Its whole environment; None: that of this process.
        stdin, stdout, stderr: Descriptors, ``subprocess.DEVNULL``, or None: those of
            this process.
        pass_fds: Further descriptors that it inherits, under the same numbers.
        heard: The signals that it must not ignore, even if they are in KEPT.
        unclean: Called if it inherits blocked or ignored signals, because no Python could
            be started to prevent it.

    Raises:
        OSError: It cannot be executed; ``filename`` is the program or *cwd*.
        ValueError, subprocess.SubprocessError: As ``subprocess.Popen``.
    """
    options: dict[str, Any] = {
        "cwd": cwd,
        "env": env,
        "stdin": stdin,
        "stdout": stdout,
        "stderr": stderr,
        "start_new_session": True,
    }
    kept = KEPT.difference(heard)
    if is_unclean(kept):
        try:
            return _start_fresh(argv, kept, tuple(pass_fds), options)
        except NoPython as error:
            unclean(error)
    return standard_popen()(argv, pass_fds=tuple(pass_fds), **options)


def is_unclean(kept: Collection[int] = ()) -> bool:
    """Whether this thread blocks signals, or this process ignores others than *kept*."""
    if block(()):
        return True
    handler_of, ignored = _signal.getsignal, _IGNORED
    found = [one for one in _USUAL if handler_of(one) == ignored and one not in kept]
    return bool(found)


def block(numbers: Iterable[int]) -> set[int]:
    """Block *numbers* on this thread, and return what it had blocked before.

    Where the system has no mask for each thread, nothing is blocked.
    """
    return (
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        if hasattr(signal, "pthread_sigmask")
        else set()
    )


_USUAL = tuple(
    int(one) for one in signal.Signals if one.name not in (*PYTHONS_OWN, "SIGRTMIN", "SIGRTMAX")
)
_IGNORED = int(signal.SIG_IGN)


def _start_fresh(
    argv: Sequence[str], kept: Iterable[int], pass_fds: tuple[int, ...], options: dict[str, Any]
) -> subprocess.Popen[bytes]:
    """Start a Python that resets the signals and becomes the program."""
    env = os.environb if options["env"] is None else options["env"]
    has_locale = "1" if b"LC_CTYPE" in map(os.fsencode, env) else ""
    numbers = " ".join(str(int(number)) for number in kept)
    answer, report = pipe()
    try:
        command = python_command("-I", "-S", "-c", EXEC, str(report), numbers, has_locale, *argv)
        try:
            popen = standard_popen()(command, pass_fds=(*pass_fds, report), **options)
        finally:
            close(report)
        errno = os.read(answer, 16)  # the end, when it has been executed
    finally:
        close(answer)
    if errno:
        popen.wait()
        raise OSError(int(errno), os.strerror(int(errno)), argv[0])
    return popen


def standard_popen() -> type[subprocess.Popen[bytes]]:
    """Return ``subprocess.Popen`` as the standard library has it.

    That of gevent waits for all children of the process, and takes their exit codes;
    that of eventlet has pipes that do not block.
    """
    global _standard  # noqa: PLW0603 - loaded once
    if subprocess.Popen.__module__ == "subprocess":
        return subprocess.Popen
    if _standard is None:
        spec = importlib.util.find_spec("subprocess")
        assert spec is not None, "it is the standard library's"
        assert spec.loader is not None, "it was found"
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.SubprocessError = subprocess.SubprocessError  # the class that callers catch
        module.os = types.SimpleNamespace(**{**vars(os), **vars(SYSTEM)})
        for holder in (module, getattr(module, "_del_safe", module)):
            holder.waitpid = SYSTEM.waitpid
        _standard = module.Popen
    return _standard


_standard: type[subprocess.Popen[bytes]] | None = None


def current_directory() -> str | None:
    """Return the working directory, None if it has been removed."""
    try:
        return os.getcwd()  # noqa: PTH109
    except OSError:
        return None


# The ends of processes


@value
class Ended(Value):
    """That a process has ended.

    Attributes:
        code: As in ``subprocess``: its exit code, or minus the number of the signal;
            None: it is not known.
        is_reaped: Whether its number may belong to another process by now.
    """

    code: int | None
    is_reaped: bool


def await_exit(pid: int) -> Ended:
    """Wait until the child process *pid* has ended, and do not reap it if that is possible.

    Where it is not (PyPy, some other systems), the process is reaped here. The caller
    must then see to it at once that its number is not used any more.
    """
    if (ended := peek(pid)) is not None:
        return ended
    if not has_real_threads():
        return _await_in_turns(pid)
    if hasattr(os, "waitid"):
        return await_change(pid, os.WEXITED)
    if hasattr(select, "kqueue"):
        # no more descriptors: wait as on systems that have no kqueue
        with contextlib.suppress(OSError):
            _await_by_kqueue(pid)
            return Ended(None, is_reaped=False)
    try:
        return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), is_reaped=True)
    except ChildProcessError:
        return Ended(None, is_reaped=True)


def await_change(pid: int, changes: int) -> Ended:
    """Wait for one of *changes*, such as ``os.WEXITED | os.WSTOPPED``.

    A process that has been stopped has no code.
    """
    try:
        found = os.waitid(os.P_PID, pid, changes | os.WNOWAIT)
    except ChildProcessError:  # other code of this process has reaped it, or SIGCHLD is ignored
        return Ended(None, is_reaped=True)
    assert found is not None, "only WNOHANG finds nothing"
    return Ended(None if found.si_code == os.CLD_STOPPED else _code_of(found), is_reaped=False)


def has_real_threads() -> bool:
    """Whether each thread of Python here is a thread of the system.

    gevent and eventlet run all of theirs in one. None of those may wait for the system,
    or all others would wait as well.
    """
    return isinstance(_thread.start_new_thread, types.BuiltinFunctionType)


def _await_in_turns(pid: int) -> Ended:
    """Look for the end of *pid*, and let other threads run in between."""
    while (ended := peek(pid) if hasattr(os, "waitid") else reap(pid)) is None:
        time.sleep(TURN)
    return ended


def _await_by_kqueue(pid: int) -> None:
    """Wait for the end of *pid* (macOS with Python 3.11 and 3.12, BSD)."""
    system: Any = select  # the names are not there on Linux, where types are checked
    queue = system.kqueue()
    try:
        event = system.kevent(
            pid, system.KQ_FILTER_PROC, system.KQ_EV_ADD | system.KQ_EV_ONESHOT, system.KQ_NOTE_EXIT
        )
        with contextlib.suppress(ProcessLookupError):  # it is a zombie already, or has been reaped
            queue.control([event], 1, None)
    finally:
        queue.close()


def reap(pid: int) -> Ended | None:
    """Reap the child process *pid*; return None if it has not ended. Never blocks."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # other code of this process has reaped it, or SIGCHLD is ignored
        return Ended(None, is_reaped=True)
    return Ended(os.waitstatus_to_exitcode(status), is_reaped=True) if found == pid else None


def peek(pid: int) -> Ended | None:
    """Look whether the child process *pid* has ended, without reaping it.

    Returns None if it has not, or if the system has no call for that.
    """
    if not hasattr(os, "waitid"):
        return None
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return Ended(None, is_reaped=True)
    return None if found is None else Ended(_code_of(found), is_reaped=False)


def _code_of(found: os.waitid_result) -> int:
    code: int = found.si_status
    return code if found.si_code == os.CLD_EXITED else -code


def is_strange(pid: int) -> bool:
    """Whether other code has reaped the child process *pid*, and another one has its
    number.
    """
    if not hasattr(os, "waitid"):
        try:
            return os.getsid(pid) != pid  # what is started here leads a session; few others do
        except ProcessLookupError:
            return False
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return exists(pid)
    return False


def exists(pid: int) -> bool:
    """Whether the process *pid* exists, be it as a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def signal_group(group: int, number: int) -> None:
    """Send a signal to all of *group*; do nothing if no process in it may be signalled.

    Raises:
        ValueError: *group* is 0 or 1. To the system that is the group of this process, or
            all processes.
    """
    if group <= 1:
        raise ValueError(f"{group} is no process group of a child")
    with contextlib.suppress(OSError):
        os.killpg(group, number)


def signal_name(returncode: int | None) -> str | None:
    """Return the signal that a process died of, such as "SIGSEGV".

    None: of no signal.
    """
    if returncode is None or returncode >= 0:
        return None
    # some signals have no name
    names = (one.name for one in signal.Signals if one == -returncode)
    return next(names, f"signal {-returncode}")
