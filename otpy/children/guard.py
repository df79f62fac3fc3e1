"""The guard: a small process that kills the programs of a tree when the process that runs the tree is gone.

It is run as ``python -I -S guard.py PARENT MARK`` and imports nothing of otpy. By its standard input it is told the
process number of each program that has started, a line each.

Laws:
1. It kills nobody while the parent lives.
2. It holds a descriptor of each program that it knows. While that is one of a process that has not been reaped, its
   number, which is also that of its group, is certainly not somebody else's. Of those that have ended it need not be
   told: who starts them kills the rest of their group then.
3. A program of which it has not been told, because the parent died in that very moment, has the mark: a descriptor of
   a pipe that only our programs have, and most of the processes that descend from them. It has it from before it is
   executed, so it cannot be missed.

Why not ``PR_SET_PDEATHSIG``: it would have to be set between fork and exec, where no Python may run in a program with
threads; it is sent when the thread that forked ends, and not the process; it does not reach grandchildren; and it is
lost where the program has a setuid bit.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterator

LOOKS = (0.01, 0.05, 0.2, 0.5)
"""The pauses before each look for programs that nobody has told of, in seconds. Not at once: what the parent was just
about to execute for others has all its descriptors for a moment, too."""

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What may be sent to everything at once must not end the guard before those whom it watches."""


def main(parent: int, mark: int) -> None:
    """Wait for the end of *parent*, then kill what it has left."""
    for number in DEAF_TO:
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for pid, fd in listen(parent).items():
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(fd, 0)  # it has not been reaped: the number is still its own
            os.killpg(pid, signal.SIGKILL)
    for pause in LOOKS:
        time.sleep(pause)
        for pid in carriers(f"pipe:[{os.fstat(mark).st_ino}]"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def listen(parent: int) -> dict[int, int]:
    """Return the programs that were left when *parent* ended, or closed its end of the line, with their descriptors.

    A fork of the parent may hold the line open as well; so the end of the parent is watched for itself.
    """
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with contextlib.suppress(OSError, AttributeError):  # an old kernel: then only the line tells
        poll.register(os.pidfd_open(parent), select.POLLIN)
    programs: dict[int, int] = {}
    rest = b""
    while os.getppid() == parent:  # first: it may be gone, and its number somebody else's
        heard = {fd for fd, _ in poll.poll()}
        if 0 not in heard:
            break
        if not (data := os.read(0, 65536)):
            return programs
        rest = note(programs, rest + data)
    note(programs, rest + read_all())
    return programs


def note(programs: dict[int, int], data: bytes) -> bytes:
    """Hold the programs that *data* names, drop those that have ended; return what is left of an incomplete line."""
    *lines, rest = data.split(b"\n")
    for line in lines:
        with contextlib.suppress(OSError, AttributeError):  # it has ended already; or an old kernel
            hold(programs, int(line))
    poll = select.poll()
    for fd in programs.values():
        poll.register(fd, select.POLLIN)
    ended = {fd for fd, _ in poll.poll(0)}
    for pid in [pid for pid, fd in programs.items() if fd in ended]:
        os.close(programs.pop(pid))
    return rest


def hold(programs: dict[int, int], pid: int) -> None:
    """Hold *pid*; not if it has a stranger's number by now: a program leads a session."""
    fd = os.pidfd_open(pid)
    if os.getsid(pid) == pid:
        programs[pid] = fd
    else:
        os.close(fd)


def read_all() -> bytes:
    """Return what is in the pipe now."""
    os.set_blocking(0, False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := os.read(0, 65536):
            data += more
    return data


def carriers(mark: str) -> Iterator[int]:
    """Yield the other processes that have a descriptor of the pipe *mark*."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and mark in descriptors(f"/proc/{name}/fd"):
            yield int(name)


def descriptors(directory: str) -> Iterator[str]:
    """Yield what the descriptors of a process are, nothing if that is not ours to know."""
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            yield os.readlink(f"{directory}/{name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
