"""Children that are programs: processes that know nothing of otpy.

Laws:
1. A program runs in a session and a process group of its own, from before its first
   instruction. Signals go to the group, so its own children get them, too; with
   ``stop_to="leader"`` the stop signal goes to the program itself only.
2. No method of ``Program`` waits. The supervisor's thread calls them; ``stop`` is also
   called by the thread that ends what was detached.

The owners:

* a ``Program`` (here) belongs to the supervisor's thread;
* a ``Making`` (making.py) belongs to a launcher, which starts the program with it;
* an ``Attendance`` (attendance.py) belongs to the watch, which does all that follows;
* a ``Run`` (run.py) is what they share, and says how.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import attrs

from otpy.abc import Birth, Deliver
from otpy.children.names import path_of
from otpy.children.program import options
from otpy.children.program.attendance import Attendance
from otpy.children.program.exit import shown
from otpy.children.program.launcher import Launchers
from otpy.children.program.making import Making, report_no_start
from otpy.children.program.options import Command, Output, Text
from otpy.children.program.probes import Health, Line, Probe
from otpy.children.program.run import Leader, Run, Vitals
from otpy.children.program.watch import Watch
from otpy.runtime import descendants, stacks, threads
from otpy.runtime.threads import ThreadState
from otpy.specs import ChildSpec, CommonButReady, check_common
from otpy.values import Value, value

UNBUFFERED = (
    "no line matched: most programs keep what they write into a pipe in a buffer "
    "(PYTHONUNBUFFERED=1 or python -u prevents it, for others stdbuf -oL)"
)
"""What the error says as well if a program is late whose lines are looked at."""


def describe(
    target: Text,
    *args: Text,
    id: str | None = None,
    cwd: Text | None = None,
    env: Mapping[str, str] | None = None,
    stdout: Output = "discard",
    stderr: Output = "discard",
    err_dir: Text | None = None,
    log_size: int = 10_000_000,
    log_backups: int = 3,
    stop_signal: str | int = "SIGTERM",
    stop_to: Literal["group", "leader"] = "group",
    success_codes: Iterable[int] = (0,),
    ready: bool | str | Probe = False,
    health: Health | None = None,
    **common: Unpack[CommonButReady],
) -> ChildSpec:
    """Describe a child that is a program; see ``process``.

    Raises:
        SpecError: A field is wrong.
    """
    check_common("process", common)
    argv = options.argv_of(path_of(id or "", "process"), target, args)
    name = id if id is not None else Path(argv[0]).name
    path = path_of(name, "process")
    place = None if cwd is None else options.text_of(path, "cwd", cwd)
    command = Command(
        argv=argv,
        cwd=place,
        env=options.env_of(path, env),
        stdout=options.output_of(path, "stdout", stdout, place),
        stderr=options.output_of(path, "stderr", stderr, place),
        err_dir=options.err_dir_of(path, name, err_dir, place),
        log_size=options.int_of(path, "log_size", log_size, 1),
        log_backups=options.int_of(path, "log_backups", log_backups, 0),
        stop_signal=options.signal_of(path, stop_signal),
        stop_to=options.stop_to_of(path, stop_to),
        success_codes=options.codes_of(path, success_codes),
        probe=options.probe_of(path, ready),
        health=options.health_of(path, health),
        heartbeat=common.get("heartbeat"),
    )
    fields: dict[str, Any] = {"shutdown": options.SHUTDOWN, **common}
    spec = ChildSpec(
        id=name, start=ProgramStart(command), ready=command.probe is not None, **fields
    )
    if health is None:
        return spec
    # the supervisor looks as often as the shorter of the two asks for
    beats = [health.interval] if spec.heartbeat is None else [health.interval, spec.heartbeat]
    return attrs.evolve(spec, heartbeat=min(beats))


@value
class ProgramStart(Value):
    """Makes a program child; the ``start`` of its spec."""

    command: Command

    def __call__(self, birth: Birth) -> Program:
        return Program(birth, self.command)

    @property
    def if_late(self) -> str:
        """What the error says as well if the program is not ready in time."""
        return UNBUFFERED if isinstance(self.command.probe, Line) else ""


class Program:
    """One incarnation of a program. Meets ``Child``."""

    def __init__(self, birth: Birth, command: Command) -> None:
        self.birth = birth
        self._run = Run(birth, command, Leader(command), Vitals(birth, command))
        self._launcher: threading.Thread | None = None
        self._attendance: Attendance

    def start(self, deliver: Deliver) -> None:
        # or each exit would keep the one before alive
        self.birth.last_exit = None
        run, tree = self._run, self.birth.tree
        run.vitals.deliver = deliver
        try:
            run.watch = watch = tree.shared(Watch)
        except (OSError, RuntimeError, MemoryError) as error:
            # no descriptor or thread is left; the next start tries again
            report_no_start(run, error)
            return
        run.leader.siblings = watch.leaders
        let_go = partial(watch.let_go, self)
        self._attendance = Attendance(run, let_go)
        # before the launch: the launcher may let it go before ``launch`` returns
        watch.admit(self)
        try:
            making = Making(run, self._attendance, let_go)
            self._launcher = tree.shared(Launchers).launch(making)
        except (RuntimeError, MemoryError) as error:
            let_go()
            report_no_start(run, error)

    def stop(self) -> None:
        self._run.leader.ask()
        self._see_again()

    def kill(self, grace: float) -> bool:
        self._run.leader.kill(self._launcher)
        self._see_again()
        return True

    def _see_again(self) -> None:
        """Have the watch see to the rest anew, if the leader has ended.

        The race is with ``Attendance._consider_end``, which is argued there.
        """
        if self._run.leader.ended.has_happened:
            self._run.watch.post(self._attendance.see_to_rest)

    def abandon(self) -> None:
        """Give it up. Its launcher may hang; if it ends at last, that is reported."""
        leader = self._run.leader
        # Not under the lock: no signal is sent here, and one write is one step.
        leader.is_asked = True
        if self._launcher is not None and leader.popen is None:
            threads.mark(self._launcher, ThreadState.UNSTOPPED)

    def detach(self) -> None:
        """Let its helpers go; the watch stays as long as the program runs."""
        self._run.helpers.detach()

    def pulse(self) -> tuple[float, float]:
        return self._run.vitals.pulse()

    def stack(self) -> str:
        """Return its state in the system, and what it wrote last."""
        run, launcher = self._run, self._launcher
        popen, words = run.leader.popen, " ".join(run.command.argv)
        if run.vitals.exit is not None:
            return ""
        if popen is None:
            stack = stacks.stack_of(launcher.ident if launcher is not None else None)
            return f"it is being started: {words}\n{stack}"
        if (rest := self._attendance.rest) is not None:
            return rest.stack()
        state = descendants.state_of(popen.pid)
        return f"process {popen.pid}, {state}: {words}\n{shown(bytes(run.tail))}"

    @property
    def state(self) -> object:
        """What it was handed over: a program saves nothing."""
        return self.birth.handover.state

    @property
    def alive(self) -> bool:
        return self._run.vitals.exit is None
