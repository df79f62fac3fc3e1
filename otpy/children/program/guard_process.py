"""The guard: a small process that kills the programs of a tree when the process that runs the tree is gone.

It is run as ``python -I -S guard.py PARENT MARK TOKEN`` and imports nothing of otpy. By
its standard input it is told the process number of each program that has started, a
line each: ``+123``; ``-123`` when one has ended, where it cannot notice that itself;
``!/tmp/directory`` names a directory of sockets that is to be removed.

Laws:
1. It kills nobody while the parent lives.
2. It holds a descriptor of each program that it knows, where the system has such
   (pidfd). While that is one of a process that has not been reaped, its number, which
   is also that of its group, is certainly not another's. Elsewhere it uses the numbers
   of which it was told, of processes that lead a session.
3. A program of which it has not been told, because the parent died in that very moment,
   has the mark: a descriptor of a pipe that only our programs have, and most of the
   processes that descend from them. It has it from before it is executed, so it cannot
   be missed. What has closed it may still be in the session of a program, or have the
   token in its environment. All of these are found in /proc only.

Why not ``PR_SET_PDEATHSIG``: it would have to be set between fork and exec, where no
Python may run in a program with threads; it is sent when the thread that forked ends,
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
"""The pauses before each look for programs that nobody has told of, in seconds. Not at once: what the parent was just
about to execute for others has all its descriptors for a moment, too."""

ROUNDS = 20
"""So often, at most, a look goes on with the processes that were forked meanwhile.

The parent of a daemon may have ended before it was seen. On a busy machine there are
always some."""

DEAF_TO = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGALRM")
"""What may be sent to everything at once must not end the guard before those whom it watches."""

AGAIN = 1.0
"""Where the end of a process cannot be waited for, the guard looks for it after so many seconds."""


def main(parent: int, mark: int, token: bytes) -> None:
    """Wait for the end of *parent*, then kill what it has left.

    Args:
        mark: A descriptor that programs have inherited.
        token: What the environment of programs holds.
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
    with contextlib.suppress(
        ImportError, OSError, ValueError
    ):  # some systems accept no infinite limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Programs:
    """What the guard has been told, and is to end.

    Attributes:
        held: Number to descriptor of each program that runs; -1: the system has no such descriptors.
        litter: Directories.
    """

    def __init__(self) -> None:
        self.held: dict[int, int] = {}
        self.litter: list[str] = []
        self._rest = b""

    def note(self, data: bytes) -> None:
        """Take what has been said; drop the programs that have ended."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(OSError):  # it has ended already
                NOTES[line[:1]](self, line[1:])
        self._drop_ended()

    def _hold(self, word: bytes) -> None:
        """Hold a program; not if it has a stranger's number by now: a program leads a session."""
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

    def _drop_ended(self) -> None:
        held = {fd: pid for pid, fd in self.held.items() if fd >= 0}
        if held:
            poll = select.poll()
            for fd in held:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(0):
                self._forget(held[fd])

    def kill(self) -> set[int]:
        """Kill them with their groups; return their numbers."""
        killed = set()
        for pid, fd in self.held.items():
            with contextlib.suppress(OSError):
                if fd >= 0:
                    signal.pidfd_send_signal(
                        fd, 0
                    )  # it has not been reaped: the number is still its own
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


def listen(parent: int, programs: Programs) -> None:
    """Listen until *parent* has ended, or has closed its end of the line.

    A fork of the parent may hold the line open as well; so the end of the parent is watched for itself.
    """
    wait = waiter(parent)
    while os.getppid() == parent:  # first: it may be gone, and its number somebody else's
        if not wait():
            continue
        if not (data := os.read(0, 65536)):
            return
        programs.note(data)
    programs.note(read_all())


def waiter(parent: int) -> Callable[[], bool]:
    """Return a function that waits for news, and says whether they are at the line.

    It also returns when *parent* has ended, or just to have that looked for.
    """
    system = vars(select)  # not every system has all of its names
    if "kqueue" in system:
        queue, event, add = system["kqueue"](), system["kevent"], system["KQ_EV_ADD"]
        reads = system["KQ_FILTER_READ"]
        queue.control([event(0, reads, add)], 0)
        with contextlib.suppress(OSError):  # it has ended
            queue.control([event(parent, system["KQ_FILTER_PROC"], add, system["KQ_NOTE_EXIT"])], 0)
        return lambda: any(one.filter == reads for one in queue.control(None, 2))
    poll, patience = select.poll(), None
    poll.register(0, select.POLLIN)
    try:
        poll.register(os.pidfd_open(parent), select.POLLIN)
    except (OSError, AttributeError):
        patience = AGAIN * 1000
    return lambda: any(fd == 0 for fd, _ in poll.poll(patience))


def read_all() -> bytes:
    """Return what is in the line now."""
    os.set_blocking(0, False)
    data = b""
    with contextlib.suppress(OSError):
        while more := os.read(0, 65536):
            data += more
    return data


def left(leaders: set[int], mark: str, token: bytes) -> Iterator[int]:
    """Yield the other processes that descend from programs: by session, by environment, or by descriptor."""
    newest = newest_number()
    for pid in numbers():
        if pid != os.getpid() and descends(str(pid), leaders, mark, token):
            yield pid
    for _ in range(ROUNDS):
        before, newest = newest, newest_number()
        if newest <= before:
            return
        yield from (
            pid for pid in range(before + 1, newest + 1) if descends(str(pid), leaders, mark, token)
        )


def numbers() -> list[int]:
    """Return the numbers of all processes, none where there is no /proc."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def newest_number() -> int:
    """Return the number that was given out last, -1 if the system does not tell."""
    try:
        with open("/proc/loadavg", "rb") as file:
            return int(file.read().split()[-1])
    except (OSError, ValueError, IndexError):
        return -1


def descends(pid: str, leaders: set[int], mark: str, token: bytes) -> bool:
    """Whether a process descends from one of our programs."""
    return session(pid) in leaders or token in environment(pid) or mark in descriptors(pid)


def environment(pid: str) -> bytes:
    """Return the environment of a process, b"" if that is not ours to know.

    Its first thread, which the process is named after, may have ended: then another one has it.
    """
    found = b""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{thread}/environ", "rb") as file,
            ):
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
    """Yield what the descriptors of a process are, nothing if that is not ours to know."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            yield os.readlink(f"/proc/{pid}/fd/{name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), os.fsencode(sys.argv[3]))
