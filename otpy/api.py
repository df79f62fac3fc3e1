"""The public names of otpy; ``otpy`` itself has them from here."""

import importlib
from typing import TYPE_CHECKING

from otpy import abc, registry, reports
from otpy.children.adopted import adopt
from otpy.children.periodic import periodic
from otpy.children.service import Service
from otpy.children.supervisor import dynamic_supervisor, supervisor
from otpy.children.thread import thread
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
    ProtocolError,
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
from otpy.reports import (
    ChildInfo,
    ChildState,
    Counts,
    Escalation,
    ExitKind,
    ExitReason,
    Snapshot,
    StopReport,
)
from otpy.runtime.context import Context, current
from otpy.runtime.handle import Supervisor
from otpy.runtime.running import run, start
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

if TYPE_CHECKING:
    from otpy import aio
    from otpy.children.coroutine.child import coroutine
    from otpy.children.processes import process, programs
    from otpy.children.program.exit import ProgramExit
    from otpy.children.program.json_reports import json_reports
    from otpy.children.program.logfiles import reopen_logs
    from otpy.children.program.probes import Health, Http, Line, Notify, Port

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
    "Health",
    "Http",
    "Ignore",
    "InternalError",
    "Killed",
    "Line",
    "MaxChildren",
    "NotAlive",
    "NotFound",
    "Notify",
    "OnUnstopped",
    "Port",
    "ProcessDied",
    "ProgramExit",
    "ProtocolError",
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
    "aio",
    "coroutine",
    "current",
    "dynamic_supervisor",
    "json_reports",
    "periodic",
    "process",
    "programs",
    "registry",
    "reopen_logs",
    "reports",
    "run",
    "start",
    "supervisor",
    "thread",
]

LATER = {
    "aio": "aio",
    "coroutine": "children.coroutine.child",
    "json_reports": "children.program.json_reports",
    **dict.fromkeys(("Health", "Http", "Line", "Notify", "Port"), "children.program.probes"),
    **dict.fromkeys(("process", "programs"), "children.processes"),
    "ProgramExit": "children.program.exit",
    "reopen_logs": "children.program.logfiles",
}
"""Name -> module, for names that few programs need and whose modules load slowly."""


def __getattr__(name: str) -> object:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"otpy.{LATER[name]}")
    return getattr(module, name, module)
