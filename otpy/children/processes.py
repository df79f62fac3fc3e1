"""Describing processes: ``process`` and ``programs``.

A process is a program or a Python callable. The options of programs are checked in
program/options.py, those of callables in callable/child.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Unpack, overload

from otpy.children.callable import child as callee
from otpy.children.names import path_of
from otpy.children.program import child as program
from otpy.children.program.options import ProgramOptions, Text
from otpy.children.supervisor import supervisor
from otpy.exceptions import SpecError
from otpy.specs import ChildSpec, SupervisorSpec


@overload
def process(
    target: Text, /, *args: Text, id: str | None = None, **options: Unpack[ProgramOptions]
) -> ChildSpec: ...


@overload
def process(
    target: Callable[..., object],
    /,
    *args: Any,
    id: str | None = None,
    **options: Unpack[callee.CalleeOptions],
) -> ChildSpec: ...


def process(target: Any, /, *args: Any, id: str | None = None, **options: Any) -> ChildSpec:
    """Describe a child that is a program, or a Python callable in a process of its own.

    The process leads a session and a process group of its own. The group is killed when
    the process has not stopped in its ``shutdown`` seconds, and when the parent process
    dies, however that happens. A process that ends without a report is a
    ``ProcessDied``.

    A program has an empty stdin. It blocks no signal, and ignores only those that a shell
    or nohup ignores. To stop it, its group gets *stop_signal*. The processes that it has
    started end with it: in a stop they have the rest of ``shutdown``; if the program ends
    by itself, they are killed at once. The exit reason has a ``ProgramExit`` as
    ``detail``, with the last that the program has written to stderr.

    A callable runs in the main thread of a fresh interpreter, which imports it: the
    process is spawned, never forked. The child is up when that has been done. A callable
    is asked to stop as a thread is.

    Args:
        target: A program: a name that is looked for in ``PATH``, or a path. Or a callable
            of a module; it is called as ``target(ctx, *args)``, where ``ctx`` has what the
            context of a thread has, but no ``supervisor``.
        args: Its arguments. Those of a callable are pickled at each start; queues and
            locks of ``multiprocessing`` may be among them, if they are from its context
            "spawn".
        id: Its name among its siblings; default: the last part of the program's path, or
            the name of the callable.
        **options: As for ``thread``. ``interrupt=False``: it is never killed, but given
            up. The state of a callable, or what its ``snapshot`` returns, is pickled. A
            program has 10.0 seconds of ``shutdown`` by default. With a ``heartbeat`` it
            must send ``WATCHDOG=1`` to its ``NOTIFY_SOCKET`` at least that often. Each of
            the two has options of its own:

    Options of programs:
        cwd: The directory in which it runs; relative paths start there, also those of the
            following options. None: the directory of the parent process.
        env: All of its environment, at each start the same; None: that of the parent
            process at that time. ``OTPY_MARK`` is added, by which its descendants are
            found.
        stdout: "discard"; "inherit": the stdout of the parent process; a path: that file
            is appended to, see docs/how-to/programs.md; or a callable: it is called with each
            line, without the line's end, on a thread of its own. It may block: then the
            program has to wait.
        stderr: The same. The last 64 KiB are in the exit reason anyway.
        err_dir: stderr also goes to ``{err_dir}/{path}.stderr.log``, where *path* is the
            child's, with a line that marks each start. Directories are made if they are
            missing.
        log_size: The most bytes of a file, >= 1; then a new one is begun.
        log_backups: How many older files are kept, as ``file.1`` (the youngest),
            ``file.2``, …, >= 0.
        stop_signal: A name or a number.
        stop_to: Which processes get it: "group"; or "leader": the program itself only, for
            servers whose workers finish their work.
        success_codes: The exit codes of a normal end, from 0 to 255.
        ready: When it counts as started: a regular expression, or ``Line``: it has written
            such a line; ``Port``; ``Http``; ``Notify`` or True: it has sent ``READY=1`` to
            its ``NOTIFY_SOCKET``. False: at once.
        health: It has stalled if it misses so many probes in a row.

    Options of callables:
        max_message_size: The most bytes of a message from it: a saved state, pickled, or
            what it raises. A callable that sends more is killed; ``ctx.check_in(state)``
            refuses to send so much.
        allow_pickle: Whether what it raises is unpickled here when a reader asks for it.
            By default it is made of plain values, and no code of the child's choice runs.

    Raises:
        SpecError: A field is wrong; a callable cannot be called with these arguments, or
            cannot be sent to a process; this is Windows. A program that is missing is
            found out at the start.
    """
    if os.name != "posix":
        expected = "a POSIX system, such as Linux or macOS"
        raise SpecError(path_of(id or "", "process"), "platform", sys.platform, expected)
    describe = callee.describe if callable(target) else program.describe
    return describe(target, *args, id=id, **options)


def programs(
    base_dir: Text,
    commands: Mapping[str, Iterable[Text]],
    *,
    id: str = "programs",
    err_dir: Text | None = None,
    supervision: Mapping[str, Any] | None = None,
    **options: Any,
) -> SupervisorSpec:
    """Describe a supervisor of programs.

    Args:
        base_dir: The directory in which all of them run.
        commands: Name to program and arguments: ``{"web": ["node", "service.js"]}``. They
            start in this order.
        id: The id of the supervisor.
        err_dir: As for ``process``; relative to *base_dir*.
        supervision: Options of the supervisor: ``strategy``, ``intensity``, ``period``, …;
            see ``supervisor``.
        **options: Options of each program, see ``process``.

    Raises:
        SpecError: A field is wrong.
    """
    where = path_of(id, "programs")
    if not isinstance(commands, Mapping):
        expected = 'a dict such as {"web": ["node", "service.js"]}'
        raise SpecError(where, "commands", commands, expected)
    children = []
    for name, argv in commands.items():
        is_list = isinstance(argv, Iterable) and not isinstance(argv, str | bytes | Mapping)
        parts = tuple(argv) if is_list else ()
        if not parts:
            expected = "a list: the program and its arguments"
            raise SpecError(where, f"commands[{name!r}]", argv, expected)
        spec = process(*parts, id=name, cwd=base_dir, err_dir=err_dir, **options)
        children.append(spec)
    return supervisor(id, children=children, **(supervision or {}))
