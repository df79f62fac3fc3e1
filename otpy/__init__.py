"""otpy: Erlang/OTP's supervision trees for programs made of threads.

Reports are in ``otpy.reports``, the account of all threads in ``otpy.registry``, and the ports for new kinds of
children, clocks and handlers in ``otpy.abc``.
"""

from otpy import abc, registry, reports
from otpy.children.adopted import adopt
from otpy.children.callee import process
from otpy.children.periodic import periodic
from otpy.children.thread import Service, thread
from otpy.context import Context, current
from otpy.exceptions import (
    AlreadyPresent,
    AlreadyStarted,
    CallTimeout,
    Fatal,
    Fenced,
    Ignore,
    InternalError,
    Killed,
    MaxChildren,
    NotAlive,
    NotFound,
    ProcessDied,
    Refusal,
    RemoteError,
    Shutdown,
    SpecError,
    StartError,
    StillRestarting,
    StillRunning,
    TreeFailed,
    WouldDeadlock,
)
from otpy.reports import ChildInfo, ChildState, Counts, Escalation, ExitKind, ExitReason, Snapshot, StopReport
from otpy.specs import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    ChildType,
    OnUnstopped,
    Restart,
    Strategy,
    SupervisorSpec,
)
from otpy.supervisors import Supervisor, dynamic_supervisor, run, start, supervisor

__all__ = [
    "AlreadyPresent",
    "AlreadyStarted",
    "AutoShutdown",
    "Backoff",
    "Budget",
    "CallTimeout",
    "ChildInfo",
    "ChildSpec",
    "ChildState",
    "ChildType",
    "Context",
    "Counts",
    "Escalation",
    "ExitKind",
    "ExitReason",
    "Fatal",
    "Fenced",
    "Ignore",
    "InternalError",
    "Killed",
    "MaxChildren",
    "NotAlive",
    "NotFound",
    "OnUnstopped",
    "ProcessDied",
    "Refusal",
    "RemoteError",
    "Restart",
    "Service",
    "Shutdown",
    "Snapshot",
    "SpecError",
    "StartError",
    "StillRestarting",
    "StillRunning",
    "StopReport",
    "Strategy",
    "Supervisor",
    "SupervisorSpec",
    "TreeFailed",
    "WouldDeadlock",
    "abc",
    "adopt",
    "current",
    "dynamic_supervisor",
    "periodic",
    "process",
    "registry",
    "reports",
    "run",
    "start",
    "supervisor",
    "thread",
]
