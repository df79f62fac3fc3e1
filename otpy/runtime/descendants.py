"""Which processes descend from one of ours: found in /proc by what they have inherited.

A process descends from a leader if its session or its group is the leader's, if its
environment holds the leader's mark, or if its parent is such a process. A process can
leave its group and its session, and it can empty its environment. Only one that does
both is lost. Where there is no /proc, no process is found: then only the group is known.

Laws:
1. Look before the leader is reaped. A zombie keeps its number: until it is reaped, no
   other process gets it.
2. A process is signalled through a descriptor of it, after it was looked at once more:
   another process may have got its number.
3. A look costs little where there are few processes to see. Numbers are given out in
   order, so all descendants have a higher one than the leader, until the numbers begin
   anew.
4. A process that was forked during a look is looked at as well. Its parent may have
   ended before it was seen, as that of a daemon does.
5. A process lives as long as one of its threads does; its first thread may have ended.

Any thread may use this module. It owns caches only.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Iterable, Iterator, MutableMapping
from pathlib import Path

import attrs

from otpy.runtime import posix
from otpy.values import Value, running, value

MARK = "OTPY_MARK"
"""The environment variable by which a descendant is known.

What an outer tree has put there stays in front.
"""

NAME = MARK.encode()

NEAR = 64
"""How many numbers are tried one by one; for more, all processes are listed."""

FORKS = 10_000
"""How many processes and threads a machine makes at most, per second.

This says when the numbers cannot have begun anew."""

ROUNDS = 20
"""How often, at most, a look goes on with the processes that were forked meanwhile.

A busy machine always forks some."""

DEAD = b"ZX"
"""The states of processes that have ended."""

CHUNK = 1 << 16
"""How many bytes of a file are read at once."""


@value
class Seen(Value):
    """A process, as /proc shows it.

    Attributes:
        pid: Its number.
        state: One letter, as ``ps`` shows it.
        parent, group, session: The numbers of these.
        started: In clock ticks since the machine has started; with *pid* it names a
            process for ever.
        threads: How many it has. A process whose first thread has ended looks like a
            zombie, but has more than one.
    """

    pid: int
    state: bytes
    parent: int
    group: int
    session: int
    started: int
    threads: int = 1

    @property
    def lives(self) -> bool:
        """Whether it has not ended. A zombie has."""
        return self.state not in DEAD or self.threads > 1


def look(pid: int) -> Seen | None:
    """Return what /proc says of *pid*; None if there is no such process."""
    words = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()  # a name may be any bytes
    if len(words) < 20:
        return None
    return Seen(
        pid, words[0], int(words[1]), int(words[2]), int(words[3]), int(words[19]), int(words[17])
    )


def environment(seen: Seen) -> bytes:
    """Return the environment of a process; b"" if this process may not read it."""
    found = _read(f"/proc/{seen.pid}/environ")
    # That is the one of the first thread. If it has ended, the other threads still have
    # it.
    if not found and seen.state in DEAD and seen.lives:
        with contextlib.suppress(OSError):
            tasks = Path(f"/proc/{seen.pid}/task").iterdir()
            found = next(filter(None, (_read(f"{task}/environ") for task in tasks)), b"")
    return found


@functools.cache
def _sees(pid: int) -> bool:
    try:
        # a /proc that belongs to another namespace shows another number
        return os.readlink("/proc/self") == str(pid)  # noqa: PTH115
    except OSError:
        return False


def is_possible() -> bool:
    """Whether /proc shows the processes that this one knows."""
    return _sees(os.getpid())


@functools.cache
def _pid_max() -> int:
    try:
        return int(Path("/proc/sys/kernel/pid_max").read_bytes())
    except (OSError, ValueError):
        return 1 << 15


_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)


def ticks() -> int:
    """Return the present moment as ``Seen.started`` counts it."""
    return int(time.clock_gettime(_CLOCK) * _TICKS) if _CLOCK is not None else 0


@running
class Family:
    """The descendants of one leader.

    Attributes:
        token: What the leader's ``OTPY_MARK`` holds, and that of no other leader.
        leader: Its number, from its start on.
        began: When it was about to be started, in ticks.
    """

    token: bytes
    leader: int = 0
    began: int = attrs.field(factory=ticks)

    def mark(self, env: MutableMapping[bytes, bytes]) -> None:
        """Put the mark for the leader into its environment."""
        outer = os.environ.get(MARK)
        env[NAME] = self.token if outer is None else b"%s,%s" % (os.fsencode(outer), self.token)

    def living(self) -> list[Seen]:
        """Return all that have not ended, except the leader.

        Returns [] where /proc shows none.
        """
        if not is_possible() or self.leader <= 1:  # it has not been started
            return []
        strangers: dict[int, Seen] = {}
        found: dict[int, Seen] = {}
        more: list[Seen] = []
        for pid in self._candidates():
            if (seen := look(pid)) is not None and seen.lives:
                strangers[pid] = seen
                # Ask at once: it may end soon, and then it has no environment any more.
                if self._is_own(seen):
                    more.append(seen)
        while more:
            found.update({one.pid: one for one in more})
            for one in more:
                strangers.pop(one.pid, None)
            more = [one for one in strangers.values() if one.parent in found]
        return list(found.values())

    def has(self, pid: int) -> bool | None:
        """Whether the process *pid* is the leader or descends from it.

        Returns None if that is not known: it may have ended.
        """
        if pid == self.leader:
            return True
        seen = look(pid) if is_possible() else None
        return None if seen is None or not seen.lives else self._is_own(seen)

    def _is_own(self, seen: Seen) -> bool:
        # 0 is the session of each process that was started from outside of a namespace.
        if self.leader <= 1:
            return False
        return self.leader in (seen.session, seen.group) or (
            seen.started >= self.began - 1 and self.token in environment(seen)
        )

    def _candidates(self) -> Iterator[int]:
        """Yield the numbers that a descendant may have, and those that are given out
        meanwhile.
        """
        newest, me = _newest(), os.getpid()
        has_wrapped = newest < self.leader
        if has_wrapped or (ticks() - self.began) / _TICKS * FORKS >= _pid_max():
            yield from (pid for pid in list(pids()) if pid not in (self.leader, me))
        elif newest - self.leader <= NEAR:
            yield from range(self.leader + 1, newest + 1)
        else:
            yield from (pid for pid in list(pids()) if pid > self.leader and pid != me)
        for _ in range(ROUNDS):
            before, newest = newest, _newest()
            if newest <= before:
                return
            yield from range(before + 1, newest + 1)


def pids() -> Iterator[int]:
    """Yield the numbers of all processes."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - there may be thousands
        if name.isdigit():
            yield int(name)


def _newest() -> int:
    """Return the number that was given out last; -1 if /proc does not show it."""
    words = _read("/proc/loadavg").split()
    return int(words[-1]) if words and words[-1].isdigit() else -1


def _read(path: str) -> bytes:
    """Return a file of /proc.

    Returns b"" if this process may not read it, or if it has just gone.
    """
    data = b""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return data
    try:
        # only an environment is longer
        while len(more := os.read(fd, CHUNK)) == CHUNK:
            data += more
    except OSError:
        return b""
    finally:
        posix.close(fd)
    return data + more


def send(seen: Seen, number: int) -> None:
    """Send a signal to *seen*, unless it has ended."""
    with contextlib.suppress(OSError):
        try:
            fd = os.pidfd_open(seen.pid)
        except AttributeError:
            fd = None
        try:
            if (now := look(seen.pid)) is None or now.started != seen.started:
                return
            if fd is None:
                os.kill(seen.pid, number)
            else:
                signal.pidfd_send_signal(fd, number)
        finally:
            if fd is not None:
                posix.close(fd)


def describe(pid: int) -> str:
    """Return a line about a process, such as "process 123, S (sleeping): sleep 1000"."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ")
    except OSError:
        words = b""
    return f"process {pid}, {state_of(pid)}: {words.decode('utf-8', 'replace') or '?'}"


def state_of(pid: int) -> str:
    """Return the state of a process by /proc, such as "S (sleeping)"."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return "state unknown"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("State:")),
        "state unknown",
    )


def adopted(token: bytes, known: set[tuple[int, int]]) -> list[int]:
    """Return the zombies that the system has handed to this process.

    No code of this process can be waiting for them. A child process that this process
    has started is in the session of this process, or leads one. So a child process in
    another session, which it does not lead, was started by another process that has
    ended. The same is true of one that has the mark: only programs get a mark.

    Args:
        token: What the marks of programs hold.
        known: Number and start of the child processes that live and have the mark. They
            are noted here, because a zombie has no environment any more.
    """
    me, session = os.getpid(), os.getsid(0)
    found, before, now = [], known.copy(), set()
    for pid in _children(me):
        seen = look(pid)
        if seen is None or seen.parent != me:
            continue
        key = pid, seen.started
        if seen.lives:
            if key in before or token in environment(seen):
                now.add(key)
        elif key in before or seen.session not in (session, pid):
            found.append(pid)
    known.clear()
    known.update(now)
    return found


def _children(me: int) -> Iterable[int]:
    """Return the child processes, at least those that were handed to the main thread."""
    try:
        return map(int, Path(f"/proc/{me}/task/{me}/children").read_bytes().split())
    except OSError:
        return pids() if is_possible() else ()


def children_of_thread(native_id: int) -> list[int]:
    """Return the child processes that a thread has started, except those that were reaped.

    Returns [] where /proc does not show them.

    Args:
        native_id: The system's number of the thread.
    """
    try:
        return [
            int(word) for word in Path(f"/proc/self/task/{native_id}/children").read_bytes().split()
        ]
    except OSError:
        return []
