"""The process of the guard: it kills programs when their parent process is gone.

The parent process is the one that runs the tree. It runs this file as ``python -I -S
guard_process.py PARENT MARK TOKEN``, and the file imports nothing of otpy. The parent
process writes lines to its standard input: ``+123``, a program with this number has
started; ``-123``, it has ended, where the guard cannot notice that itself;
``!/tmp/directory``, a directory of sockets that is to be removed.

Laws:
1. It kills no process while the parent process lives.
2. It holds a descriptor of each program that it knows, where the system has such (pidfd).
   As long as that process has not been reaped, its number, which is also that of its
   group, is certainly not another's. Elsewhere the guard uses the numbers that it was
   given, of processes that lead a session.
3. A program that was not reported, because the parent process died in that very moment,
   has the mark: a descriptor of a pipe that only our programs have, and most of the
   processes that descend from them. A program has it from before it is executed, so it
   cannot be missed. A process that has closed it may still be in the session of a program,
   or have the token in its environment. All of these are found in /proc only.

Why not ``PR_SET_PDEATHSIG``: it would have to be set between fork and exec, where no
Python may run in a process with threads; it is sent when the thread that forked ends,
and not the process; it does not reach grandchildren; and it is lost where the program
has a setuid bit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator

LOOKS = (0.01, 0.05, 0.2, 0.5)
"""Seconds before each search for programs that were not reported.

The first one waits: a process that the parent process was just forking for another purpose
also has the mark until it is executed."""

ROUNDS = 20
"""So often, at most, a search goes on with the processes that were forked meanwhile.

The parent of a daemon may have ended before it was seen. On a busy machine the search would
never be over."""

DEAF_TO = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGALRM")
"""Signals that may be sent to all processes at once: they must not end the guard."""

AGAIN = 1.0
"""Seconds between looks for the parent process, where none can wait for its end."""


def main(parent: int, mark: int, token: bytes) -> None:
    """Wait for the end of *parent*, then kill what it has left.

    Args:
        parent: The number of the parent process.
        mark: A descriptor that programs have inherited.
        token: The text that the environment of programs holds.
    """
    for name in DEAF_TO:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    raise_limit()
    programs = Programs()
    listen(parent, programs)
    leaders = programs.kill()
    for pause in LOOKS:
        time.sleep(pause)
        for pid in left(leaders, f"pipe:[{os.fstat(mark).st_ino}]", token):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    programs.clean_up()


def raise_limit() -> None:
    """Have as many descriptors as may be had."""
    # ValueError: some systems accept no infinite limit
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Programs:
    """The programs and directories that the guard is to end.

    Attributes:
        held: Number to descriptor of each program that runs; -1: the system has no such
            descriptors.
        litter: Directories.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.litter: list[str] = []
        self._rest = b""

    def note(self, data: bytes) -> None:
        """Note lines of the parent process; drop the programs that have ended."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            # OSError: the program has ended already
            with contextlib.suppress(OSError):
                NOTES[line[:1]](self, line[1:])
        held = {fd: pid for pid, fd in self.held.items() if fd >= 0}
        if held:
            poll = select.poll()
            for fd in held:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(0):
                self._forget(held[fd])

    def _hold(self, word: bytes) -> None:
        """Hold a program. It leads a session, or a stranger has its number by now."""
        pid, fd = int(word), -1
        if hasattr(os, "pidfd_open"):
            fd = os.pidfd_open(pid)
        if os.getsid(pid) == pid:
            self.held[pid] = fd
        elif fd >= 0:
            os.close(fd)

    def _drop(self, word: bytes) -> None:
        self._forget(int(word))

    def _forget(self, pid: int) -> None:
        fd = self.held.pop(pid, -1)
        if fd >= 0:
            os.close(fd)

    def _note_litter(self, word: bytes) -> None:
        self.litter.append(os.fsdecode(word))

    def kill(self) -> set[int]:
        """Kill them with their groups; return their numbers."""
        killed = set()
        for pid, fd in self.held.items():
            with contextlib.suppress(OSError):
                if fd >= 0:
                    # raises if it has been reaped; else the number is still its own
                    signal.pidfd_send_signal(fd, 0)
                elif os.getsid(pid) != pid:
                    continue
                killed.add(pid)
                os.killpg(pid, signal.SIGKILL)
        return killed

    def clean_up(self) -> None:
        """Remove the directories."""
        for directory in self.litter:
            with contextlib.suppress(OSError):
                for name in os.listdir(directory):
                    os.unlink(os.path.join(directory, name))
                os.rmdir(directory)


NOTES = {b"+": Programs._hold, b"-": Programs._drop, b"!": Programs._note_litter}
"""What each line means, by its first character."""


def listen(parent: int, programs: Programs) -> None:
    """Listen until *parent* has ended, or has closed its end of the line.

    A fork of the parent process may hold the line open as well; so its end is watched for
    itself.
    """
    wait = waiter(parent)
    # before each wait: the parent process may be gone, and its number another's
    while os.getppid() == parent:
        if not wait():
            continue
        if not (data := os.read(0, 65536)):
            return
        programs.note(data)
    programs.note(read_all())


def waiter(parent: int) -> Callable[[], bool]:
    """Return a function that waits for news, and returns whether the line has some.

    The function also returns when *parent* has ended, or just to have that looked for.
    """
    # as a dict, because not every system has all of these names
    system = vars(select)
    if "kqueue" in system:
        queue, event, add = system["kqueue"](), system["kevent"], system["KQ_EV_ADD"]
        reads = system["KQ_FILTER_READ"]
        queue.control([event(0, reads, add)], 0)
        # OSError: the parent process has ended
        with contextlib.suppress(OSError):
            queue.control([event(parent, system["KQ_FILTER_PROC"], add, system["KQ_NOTE_EXIT"])], 0)
        return lambda: any(one.filter == reads for one in queue.control(None, 2))
    poll, milliseconds = select.poll(), None
    poll.register(0, select.POLLIN)
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except (OSError, AttributeError):
        milliseconds = AGAIN * 1000
    return lambda: any(fd == 0 for fd, _ in poll.poll(milliseconds))


def read_all() -> bytes:
    """Return what is in the line now."""
    os.set_blocking(0, False)
    data = b""
    with contextlib.suppress(OSError):
        while more := os.read(0, 65536):
            data += more
    return data


def left(leaders: set[int], mark: str, token: bytes) -> Iterator[int]:
    """Yield the processes that descend from programs: by session, environment, or mark."""
    newest = newest_number()
    for pid in numbers():
        if pid != os.getpid() and descends(str(pid), leaders, mark, token):
            yield pid
    for _ in range(ROUNDS):
        before, newest = newest, newest_number()
        if newest <= before:
            return
        forked = range(before + 1, newest + 1)
        yield from (pid for pid in forked if descends(str(pid), leaders, mark, token))


def numbers() -> list[int]:
    """Return the numbers of all processes; none, where the system has no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def newest_number() -> int:
    """Return the number that was given to a process last; -1 if that is not known."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[-1])
    except (OSError, ValueError, IndexError):
        return -1


def descends(pid: str, leaders: set[int], mark: str, token: bytes) -> bool:
    """Whether a process descends from one of our programs."""
    return session(pid) in leaders or token in environment(pid) or mark in descriptors(pid)


def environment(pid: str) -> bytes:
    """Return the environment of a process; b"", if we may not read it.

    The first thread, by which the process is named, may have ended: then another one has
    the environment.
    """
    found = b""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            file_name = f"/proc/{pid}/task/{thread}/environ"
            with contextlib.suppress(OSError), open(file_name, "rb") as file:
                found = found or file.read()
    return found


def session(pid: str) -> int:
    """Return the session of a process that has not ended, -1 for others.

    One whose first thread has ended looks like a zombie, but has more threads than that.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        return -1 if words[0] in b"ZX" and int(words[17]) < 2 else int(words[3])
    except (OSError, IndexError):
        return -1


def descriptors(pid: str) -> Iterator[str]:
    """Yield the targets of a process's descriptors; nothing, if we may not read them."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # it was closed meanwhile; the others count
            yield os.readlink(f"/proc/{pid}/fd/{name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), os.fsencode(sys.argv[3]))
