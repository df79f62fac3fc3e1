"""The machine, as dialogues: the ladder, the end of a supervisor, budgets of a stop."""

from __future__ import annotations

import pytest

from otpy.core import messages
from otpy.core.messages import ChildExited, StopSupervisor
from otpy.reports import ExitKind
from tests.machine_talk import CRASH, KILLED, NORMAL, SHUTDOWN, booted, child, nested


class TestLadder:
    def test_ask_interrupt_give_up(self):
        """Each rung has its time; then the child no longer counts, and the next one stops."""
        talk = booted(child("a"), child("b", shutdown=2.0))

        assert talk.hear(StopSupervisor()) == ["stop 2", "arm 2 at 2"]
        talk.now = 2.0
        assert talk.due("b") == ["kill 2", "arm 2 at 2.5"]
        talk.now = 2.5
        assert talk.due("b") == ["disarm 2", "abandon 2: app/b 1", "stop 1", "arm 1 at 7.5"]
        assert talk.hear(ChildExited(2, CRASH)) == []
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "end shutdown a"]

    def test_infinity_has_no_timer(self):
        """It is asked, and waited for."""
        talk = booted(child("a", shutdown="infinity"))

        assert talk.hear(StopSupervisor()) == ["stop 1", "disarm 1"]

    def test_brutal_kill_starts_with_the_interrupt(self):
        """An end by the interrupt is what was wanted; it is accounted as interrupted."""
        talk = booted(child("a", shutdown="brutal_kill"))

        assert talk.hear(StopSupervisor()) == ["kill 1", "arm 1 at 0.5"]
        assert talk.exit("a", KILLED) == ["disarm 1", "end shutdown a!"]

    def test_without_interrupt_the_rung_is_another_asking(self):
        """A spec can switch the interrupt off; the grace remains."""
        talk = booted(child("a", interrupt=False, shutdown=1.0))
        talk.hear(StopSupervisor())

        assert talk.due("a") == ["stop 1", "arm 1 at 0.5"]

    def test_a_supervisor_that_is_killed_needs_no_grace(self):
        """It hurries, and its end is certain."""
        talk = booted(nested("s", shutdown=1.0))

        assert talk.hear(StopSupervisor()) == ["stop 1", "arm 1 at 1"]
        assert talk.due("s") == ["kill 1", "disarm 1"]

    def test_the_total_budget_hurries_all_that_still_runs(self):
        """The grace is part of the budget; all are interrupted at one moment."""
        talk = booted(child("a"), child("b", shutdown="infinity"))

        assert talk.hear(StopSupervisor(within=2.0)) == ["arm 0 at 1.5", "stop 2", "disarm 2"]
        talk.now = 1.5
        assert talk.hear(messages.Due(0)) == ["kill 2", "arm 2 at 2", "kill 1", "arm 1 at 2"]

    def test_a_second_stop_can_only_shorten(self):
        """A longer budget than the one that is left changes nothing; zero is now."""
        talk = booted(child("a", shutdown="infinity"))
        talk.hear(StopSupervisor(within=2.0))

        assert talk.hear(StopSupervisor(within=9.0)) == []
        assert talk.hear(StopSupervisor(within=0.0)) == ["disarm 0", "kill 1", "arm 1 at 0.5"]
        assert talk.exit("a", KILLED) == [
            "disarm 1",
            "tell ShutdownError app/a killed",
            "end shutdown a!",
        ]
        assert talk.hear(StopSupervisor(within=0.0)) == []

    def test_hold_waits_with_the_start_and_with_nothing_else(self):
        """The others stop; the group starts up to the held child, and goes on when it has really ended."""
        talk = booted(
            child("a"),
            child("b", shutdown=0.0, unstopped="hold"),
            child("c"),
            strategy="one_for_all",
        )
        talk.exit("c")
        talk.due("b")

        assert talk.due("b") == ["disarm 2", "abandon 2: app/b 1", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "start a 2 as 4"]
        assert talk.up("a") == ["tell Progress app/a"]
        assert talk.states() == {"a": "running", "b": "unstopped", "c": "undefined"}
        assert talk.hear(ChildExited(2, SHUTDOWN)) == ["stop 4", "arm 4 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 4", "start a 3 as 5"]
        assert talk.up("a", "b") == ["tell Progress app/b", "start c 2 as 7"]

    def test_a_held_child_that_ends_before_its_turn(self):
        """If the plan has not come to it yet, it is started in its turn."""
        talk = booted(
            child("a", shutdown="infinity"),
            child("b", shutdown=0.0, unstopped="hold"),
            child("c"),
            strategy="one_for_all",
        )
        talk.exit("c")
        talk.due("b")
        talk.due("b")

        assert talk.hear(ChildExited(2, SHUTDOWN)) == []
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "start a 2 as 4"]
        assert talk.up("a") == ["tell Progress app/a", "start b 2 as 5"]

    def test_terminate_child_of_a_held_child(self):
        """The caller is answered; nothing starts when it has ended; a start is refused until then."""
        talk = booted(child("a", shutdown=0.0, unstopped="hold"))
        talk.hear(messages.TerminateChild(reply="r", id="a"))
        talk.due("a")

        assert talk.due("a") == ["disarm 1", "abandon 1: app/a 1", "answer r: None"]
        assert talk.hear(messages.RestartChild(reply="s", id="a")) == ["refuse s: StillRunning"]
        assert talk.hear(messages.TerminateChild(reply="t", id="a")) == ["answer t: None"]
        assert talk.hear(ChildExited(1, SHUTDOWN)) == []
        assert talk.states() == {"a": "undefined"}

    def test_a_late_start_that_is_held_is_retried_when_it_has_ended(self):
        """It was a failed start of a restart: a unit is spent for the next attempt, and not before."""
        talk = booted(child("a", ready=True, start_timeout=1.0, shutdown=0.0, unstopped="hold"))
        talk.exit("a")
        talk.due("a")
        talk.due("a")

        assert talk.due("a") == ["disarm 2", "abandon 2: app/a 2"]
        assert talk.hear(ChildExited(2, SHUTDOWN)) == ["tell StartFailed app/a killed", "again 3"]

    def test_a_late_restart_child_that_is_held_is_not_retried(self):
        """Nobody retries a call."""
        talk = booted(child("a", ready=True, start_timeout=1.0, shutdown=0.0, unstopped="hold"))
        talk.hear(messages.TerminateChild(reply="r", id="a"))
        talk.exit("a", SHUTDOWN)
        talk.hear(messages.RestartChild(reply="s", id="a"))
        talk.due("a")
        talk.due("a")

        assert talk.due("a") == ["disarm 2", "abandon 2: app/a 2", "refuse s: StartError"]
        assert talk.hear(ChildExited(2, SHUTDOWN)) == []

    def test_nothing_is_held_of_a_child_whose_spec_goes(self):
        """A new child whose start was late is forgotten, however it ends."""
        talk = booted()
        spec = child("n", ready=True, start_timeout=1.0, shutdown=0.0, unstopped="hold")
        talk.hear(messages.StartChild(reply="r", spec=spec))
        talk.due("n")
        talk.due("n")

        assert talk.due("n") == ["disarm 1", "abandon 1: app/n 1", "refuse r: StartError"]
        assert talk.states() == {}

    def test_escalate_gives_up(self):
        """A child that cannot be stopped takes its supervisor with it."""
        talk = booted(
            child("a"), child("b", shutdown=0.0, unstopped="escalate"), strategy="one_for_all"
        )
        talk.exit("a")
        talk.due("b")

        assert talk.due("b") == [
            "disarm 2",
            "abandon 2: app/b 1",
            "tell LimitReached app killed",
            "escalate app because of app/b",
            "end limit_reached",
        ]

    def test_the_end_does_not_wait_for_a_held_child(self):
        """It was given up already."""
        talk = booted(child("a", shutdown=0.0, unstopped="hold"))
        talk.hear(messages.TerminateChild(reply="r", id="a"))
        talk.due("a")
        talk.due("a")

        assert talk.hear(StopSupervisor()) == ["end shutdown"]

    def test_too_many_unstopped_make_the_root_give_up(self):
        """Once; while it ends, no more."""
        talk = booted(child("a"))

        assert talk.hear(messages.TooManyUnstopped("app/s/x", 3)) == [
            "tell LimitReached app killed",
            "escalate app because of app/s/x",
            "stop 1",
            "arm 1 at 5",
        ]
        assert talk.hear(messages.TooManyUnstopped("app/s/y", 4)) == []


class TestEnd:
    def test_a_limit_breach_stops_the_others_in_reverse_order(self):
        """The culprit first, then the others, last first; no start is tried."""
        talk = booted(child("a"), child("b"), child("c"), intensity=0)

        assert talk.exit("b") == [
            "tell ChildTerminated app/b crashed",
            "tell LimitReached app crashed",
            "escalate app because of app/b",
            "stop 3",
            "arm 3 at 5",
        ]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "end limit_reached c a"]

    def test_the_chain_grows_upwards(self):
        """An escalation that comes from below is the last link of the chain, after those below it."""
        low, high = booted(child("x"), intensity=0), booted(nested("s"), intensity=0)
        low.exit("x")
        high.exit("s", low.machine.ending.outcome)
        first, second = low.machine.ending.outcome.detail, high.machine.ending.outcome.detail

        assert (first.child, first.chain, first.restarts) == ("app/x", (), 1)
        assert (second.child, second.chain) == ("app/s", (first,))

    def test_dynamic_children_stop_side_by_side(self):
        """All are told at once, the youngest first."""
        talk = booted(dynamic=True)
        for id in "ab":
            talk.hear(messages.StartChild(reply=id, spec=child(id)))
            talk.up(id)

        assert talk.hear(StopSupervisor()) == ["stop 2", "arm 2 at 5", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1"]
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "end shutdown a b"]

    def test_a_stop_overtakes_a_retry(self):
        """A waiting child is skipped, and its retry finds nothing."""
        talk = booted(child("a"), child("b"))
        talk.exit("a")
        talk.exit("a")

        assert talk.hear(StopSupervisor()) == ["stop 2", "arm 2 at 5"]
        assert talk.retry() == []

    def test_a_stop_overtakes_a_group_restart(self):
        """What the plan wanted to start stays down."""
        talk = booted(child("a"), child("b"), strategy="one_for_all")
        talk.exit("a")

        assert talk.hear(StopSupervisor()) == []
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "end shutdown b"]

    def test_deaths_during_the_end_are_collected(self):
        """They keep their reasons, and nobody is restarted."""
        talk = booted(child("a"), child("b"))
        talk.hear(StopSupervisor())

        assert talk.exit("a") == ["tell ShutdownError app/a crashed"]
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "end shutdown a b"]

    def test_a_second_reason_to_end_changes_nothing(self):
        """The first outcome stands."""
        talk = booted(child("a"), intensity=0)
        talk.exit("a")

        assert talk.machine.ending.outcome.kind is ExitKind.LIMIT_REACHED
        talk.hear(StopSupervisor())
        assert talk.machine.ending.outcome.kind is ExitKind.LIMIT_REACHED

    @pytest.mark.parametrize(
        ("mode", "ends_after"),
        [("never", None), ("any_significant", "a"), ("all_significant", "b")],
    )
    def test_auto_shutdown(self, mode, ends_after):
        """any: the first own end of a significant child ends it; all: the last one's."""
        significant = mode != "never"
        talk = booted(
            child("a", restart="transient", significant=significant),
            child("b", restart="temporary", significant=significant),
            child("c"),
            auto_shutdown=mode,
        )
        ended = None
        for id in "ab":
            if ended is None and any("AutoShutdownBegun" in line for line in talk.exit(id, NORMAL)):
                ended = id

        assert ended == ends_after

    def test_a_waiting_significant_child_still_counts(self):
        """all_significant: RESTARTING is not gone."""
        talk = booted(
            child("a", restart="transient", significant=True),
            child("b", restart="transient", significant=True),
            auto_shutdown="all_significant",
        )
        talk.exit("a")
        talk.exit("a")

        assert talk.exit("b", NORMAL) == []


def test_a_short_budget_is_half_asking_half_grace():
    """Obedient children end by being asked, whatever the budget; the grace goes down to nested supervisors."""
    talk = booted(nested("s"))

    assert talk.hear(StopSupervisor(within=0.2)) == ["arm 0 at 0.1", "stop 1", "disarm 1"]
    talk.now = 0.1
    assert talk.machine.receive(messages.Due(0), talk.now)[0] == messages.Kill(1, 0.1)


def test_hurrying_shortens_a_grace_that_runs():
    """A child that was interrupted before has no more time than the others."""
    talk = booted(child("a", shutdown="brutal_kill"))
    talk.hear(StopSupervisor())

    assert talk.hear(StopSupervisor(within=0.2)) == ["arm 0 at 0.1"]
    talk.now = 0.1
    assert talk.hear(messages.Due(0)) == ["kill 1", "arm 1 at 0.2"]


def test_a_budget_that_was_shortened_does_not_run_out_later():
    """The hurry comes once; a second one would give more grace (found by the walks)."""
    talk = booted(child("a", shutdown="infinity"))
    talk.hear(StopSupervisor(within=1.0))

    assert talk.hear(StopSupervisor(within=0.0, grace=0.1)) == [
        "disarm 0",
        "kill 1",
        "arm 1 at 0.1",
    ]


def test_a_killed_supervisor_uses_the_grace_that_it_was_given():
    """Not more."""
    talk = booted(child("a"))

    assert talk.hear(StopSupervisor(within=0.0, grace=0.1)) == [
        "disarm 0",
        "kill 1",
        "arm 1 at 0.1",
    ]
