"""The dice of the walks (walks.py): which trees, which ends, which waits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from otpy.reports import ExitReason
from otpy.runtime.supervisor import NestedSupervisor
from otpy.specs import (
    AutoShutdown,
    Backoff,
    Budget,
    ChildSpec,
    Restart,
    Strategy,
    SupervisorSpec,
)
from tests.walks_cast import REASONS, Actor


class Dice:
    """Decides by chance, and makes trees by chance."""

    random: random.Random
    has_health: bool
    is_dense: bool
    has_significant: bool
    _ids: Iterator[int]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def delay(self) -> float:
        return (
            self.pick(0.0, 0.01, 0.3, 1.0)
            if self.is_dense
            else self.pick(0.0, 0.0, 0.01, 0.3, 1.0, 4.0)
        )

    def any_reason(self) -> ExitReason:
        return self.random.choice(REASONS)

    def _any_supervisor(self, id: str, depth: int) -> SupervisorSpec:
        auto = self.pick(AutoShutdown.NEVER, AutoShutdown.NEVER, *AutoShutdown)
        if self.has_significant and self.chance(0.8):
            auto = self.pick(
                AutoShutdown.ALL_SIGNIFICANT,
                AutoShutdown.ALL_SIGNIFICANT,
                AutoShutdown.ANY_SIGNIFICANT,
            )
        dynamic = self.chance(0.2)
        children = (
            []
            if dynamic
            else [self._any_child(f"c{n}", depth, auto) for n in range(self._any_size())]
        )
        return SupervisorSpec(
            id=id,
            start=NestedSupervisor,
            children=children,
            dynamic=dynamic,
            max_children=self.pick(None, 2) if dynamic else None,
            strategy=Strategy.ONE_FOR_ONE if dynamic else self._any_strategy(),
            intensity=self.pick(0, 1, 3, 10, 30) if not self.is_dense else 30,
            period=self.pick(0.5, 5.0, 100.0),
            auto_shutdown=AutoShutdown.NEVER if dynamic else auto,
            restart=self.pick(Restart.PERMANENT, Restart.PERMANENT, *Restart),
            shutdown=self.pick(Budget.INFINITY, Budget.INFINITY, 1.0, Budget.BRUTAL_KILL),
        )

    def _any_size(self) -> int:
        return self.random.randint(2, 3) if self.is_dense else self.random.randint(0, 4)

    def _any_strategy(self) -> Strategy:
        if self.is_dense and self.has_significant and self.chance(0.5):
            return (
                Strategy.REST_FOR_ONE
            )  # only there may a significant child leave while another one is stopped
        return self.pick(*Strategy)

    def _any_child(self, id: str, depth: int, auto: AutoShutdown) -> ChildSpec:
        if depth and self.chance(0.4):
            return self._any_supervisor(id, depth - 1)
        restart = self.pick(Restart.PERMANENT, Restart.PERMANENT, *Restart)
        if self.has_significant and self.chance(0.7):
            restart = self.pick(Restart.TRANSIENT, Restart.TEMPORARY)
        may_be_significant = auto is not AutoShutdown.NEVER and restart is not Restart.PERMANENT
        return ChildSpec(
            id=id,
            start=lambda birth: Actor(self, birth),
            restart=restart,
            shutdown=self.pick(0.0, 1.0, 5.0, Budget.INFINITY, Budget.BRUTAL_KILL),
            significant=may_be_significant and self.chance(0.8 if self.has_significant else 0.5),
            ready=self.chance(0.5),
            start_timeout=self.pick(None, 0.5),
            interrupt=self.chance(0.8),
            unstopped=self.pick("replace", "replace", "hold", "escalate"),
            heartbeat=self.pick(None, None, 0.7, 2.0) if self.has_health else None,
            backoff=self._any_backoff() if self.has_health else None,
        )

    def _any_backoff(self) -> Backoff | None:
        calm = self.pick(0.0, 3.0, 60.0)
        return self.pick(
            None, None, None, Backoff(0.2, 1.0, reset_after=calm), Backoff(2.0, 6.0, jitter=1.0)
        )
