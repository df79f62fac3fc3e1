"""``start`` and ``run``: a tree begins, and its caller waits for it."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any, TypedDict, Unpack

from otpy import threads
from otpy.abc import Birth, Clock, Puttable, ReportHandler
from otpy.exceptions import CallTimeout, NotAlive, NotFound, SpecError, StartError, TreeFailed
from otpy.handle import Supervisor
from otpy.mailbox import SystemClock
from otpy.messages import Handover
from otpy.reports import ChildState, Escalation, ExitKind, StopReport
from otpy.signals import Signals, listening, unhandled
from otpy.specs import ChildType, SupervisorSpec, is_number
from otpy.supervisors import SupervisorThread
from otpy.telemetry import Telemetry, is_sink, log_report
from otpy.tree import Tree, guard


def start(tree: SupervisorSpec, **options: Unpack[Options]) -> Supervisor:
    """Start a tree and return its handle when all of it is up.

    The same spec may be started any number of times: the trees are independent of each other.

    Args:
        tree: What ``supervisor`` or ``dynamic_supervisor`` returned.
        **options: See ``Options``.

    Raises:
        SpecError: *tree* or an option is wrong; nothing has been started.
        StartError: Some child did not come up, or not all did in time. What had been started was stopped in reverse
            order. Its ``path`` is the child's, its ``__cause__`` what the child raised.
        KeyboardInterrupt: Ctrl-C while the tree started; what had been started was stopped likewise.
    """
    with listening(unhandled()) as signals:
        core = _begin(tree, options, signals)
        if signals.count:
            signals.wait(core.done, None, core.path)
            core.tree.settle()
    if signals.count:
        raise KeyboardInterrupt
    return Supervisor(core.tree, core.path)


def run(tree: SupervisorSpec, **options: Unpack[Options]) -> StopReport:
    """Start a tree, wait for its end, and return how it ended.

    In the main thread, SIGINT and SIGTERM stop the tree in order, also while it starts; a second signal shortens all
    budgets to zero, a third exits the process at once.

    Args:
        tree, **options: As for ``start``.

    Raises:
        SpecError, StartError: As for ``start``.
        TreeFailed: The root gave up. Left alone, this ends the program with a non-zero exit status.
    """
    with listening([signal.SIGINT, signal.SIGTERM]) as signals:
        core = _begin(tree, options, signals)
        report: StopReport = signals.wait(core.done, None, core.path)
    core.tree.settle()
    if report.reason.kind not in (ExitKind.NORMAL, ExitKind.SHUTDOWN):
        raise TreeFailed(core.path, report.reason, report) from report.reason.exception
    return report


class Options(TypedDict, total=False):
    """The options of ``start`` and ``run``.

    Attributes:
        reports: Gets every report: a callable, or anything with ``put``.
        on_escalation: Called for every escalation anywhere in the tree, after the supervisor's own.
        log: Whether reports also go to structlog; default True.
        timeout: Seconds that the whole tree may take to come up; None, the default: no limit.
        max_unstopped: How many threads that could not be stopped the tree may leave behind before the root gives up;
            default 100.
        clock: Where time comes from; default: the machine's.
        seed: What the jitter of ``Backoff`` is made from: the same seed, the same waits; None, the default: other ones
            each time.
    """

    reports: ReportHandler | Puttable | None
    on_escalation: Callable[[Escalation], object] | None
    log: bool
    timeout: float | None
    max_unstopped: int
    clock: Clock | None
    seed: int | None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    # option: (whether a value is right, what would be right)
    "reports": (lambda sink: sink is None or is_sink(sink), "a callable, an object with put, or None"),
    "on_escalation": (lambda handler: handler is None or callable(handler), "a callable or None"),
    "log": (lambda log: isinstance(log, bool), "True or False"),
    "timeout": (
        lambda seconds: seconds is None or (is_number(seconds) and seconds > 0),
        "a finite number of seconds > 0, or None",
    ),
    "max_unstopped": (lambda count: _is_int(count) and count >= 0, "an int >= 0"),
    "clock": (lambda clock: clock is None or isinstance(clock, Clock), "an otpy.abc.Clock, or None"),
    "seed": (lambda seed: seed is None or _is_int(seed), "an int or None"),
}


def _check_options(spec: SupervisorSpec, options: Options) -> None:
    if not isinstance(spec, SupervisorSpec):
        raise SpecError("<tree>", "tree", spec, "a supervisor's spec, as supervisor() makes")
    for name, value in options.items():
        if name not in OPTIONS:
            raise SpecError(spec.id, name, "an option", f"one of {', '.join(OPTIONS)}")
        is_right, expected = OPTIONS[name]
        if not is_right(value):
            raise SpecError(spec.id, name, value, expected)


def _begin(spec: SupervisorSpec, options: Options, signals: Signals) -> SupervisorThread:
    """Start the tree and wait until it is up, or until it has ended because of a signal."""
    core = _launch(spec, options)
    signals.obey(core)
    try:
        _bring_up(core, options.get("timeout"), signals)
    except StartError:
        if not signals.count:
            raise
    return core


def _launch(spec: SupervisorSpec, options: Options) -> SupervisorThread:
    """Start the root's thread; it is not up yet."""
    _check_options(spec, options)
    tree = _tree(spec, options)
    core = SupervisorThread(_root_birth(spec, tree))
    try:
        tree.telemetry = Telemetry(spec.id, tree, options.get("on_escalation"))
        _subscribe(tree.telemetry, spec, options)
    except RuntimeError as error:  # can't start new thread
        raise StartError(spec.id, str(error)) from error
    guard(tree, core.mailbox.put, core.done)
    core.start(lambda _: None)
    return core


def _tree(spec: SupervisorSpec, options: Options) -> Tree:
    seed = options.get("seed")
    return Tree(
        root=spec.id,
        clock=options.get("clock") or SystemClock(),
        max_unstopped=options.get("max_unstopped", 100),
        seed=random.getrandbits(64) if seed is None else seed,
    )


def _root_birth(spec: SupervisorSpec, tree: Tree) -> Birth:
    return Birth(
        ref=0,
        path=spec.id,
        spec=spec,
        incarnation=1,
        last_exit=None,
        handover=Handover(),
        spawn=threads.Spawner(tree, spec.id).spawn,
        supervisor=None,
        tree=tree,
    )


def _subscribe(telemetry: Telemetry, spec: SupervisorSpec, options: Options) -> None:
    try:
        if options.get("log", True):
            telemetry.subscribe(spec.id, log_report, "log")
        if (sink := options.get("reports")) is not None:
            telemetry.subscribe(spec.id, sink)
    except RuntimeError:
        telemetry.close()
        raise


def _bring_up(core: SupervisorThread, timeout: float | None, signals: Signals) -> None:
    """Wait until the tree is up; otherwise stop it, wait for its end, and raise."""
    try:
        signals.wait(core.up, timeout, core.path)
    except CallTimeout:
        late = ", ".join(_starting(Supervisor(core.tree, core.path)))
        _stop_and_wait(core, signals)
        raise StartError(late or core.path, f"not up after {timeout} s") from None
    except BaseException:  # a StartError: it has ended already; or what a signal handler of the program raised
        _stop_and_wait(core, signals)
        raise


def _stop_and_wait(core: SupervisorThread, signals: Signals) -> None:
    core.stop()
    signals.wait(core.done, None, core.path)
    core.tree.settle()


def _starting(handle: Supervisor) -> Iterator[str]:
    """Yield the paths of the children that everything waits for, the deepest ones."""
    with contextlib.suppress(NotAlive, NotFound):
        for child in handle.which_children():
            if child.state is ChildState.STARTING:
                below = list(_starting(handle.find(child.path))) if child.type is ChildType.SUPERVISOR else []
                yield from below or [child.path]
