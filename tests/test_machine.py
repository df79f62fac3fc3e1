"""The machine, as dialogues: a message in, the whole list of actions out."""

from __future__ import annotations

import pytest

from otpy import Backoff, exceptions
from otpy.core import messages
from otpy.core.messages import ChildExited, ChildStarted, StopSupervisor
from otpy.reports import Counts, ExitKind, ExitReason
from tests.machine_talk import CRASH, KILLED, NORMAL, SHUTDOWN, Talk, booted, child, nested


class TestBoot:
    def test_children_start_one_after_the_other(self):
        """The next child is started when the one before is up."""
        talk = Talk(child("a"), child("b"))

        assert talk.begin() == ["start a 1 as 1"]
        assert talk.up("a") == ["tell Progress app/a", "start b 1 as 2"]
        assert talk.up("b") == ["tell Progress app/b", "up"]

    def test_without_children_it_is_up_at_once(self):
        """A supervisor without children is a supervisor."""
        assert Talk().begin() == ["up"]

    def test_a_failed_start_stops_what_was_started_in_reverse_order(self):
        """The first failure ends the boot: what follows is never started, what precedes is stopped, last first."""
        talk = Talk(child("a"), child("b"), child("c"), child("d"))
        talk.begin()
        talk.up("a", "b")

        assert talk.exit("c") == ["tell StartFailed app/c crashed", "stop 2", "arm 2 at 5"]
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "end shutdown b a"]
        assert isinstance(talk.machine.ending.outcome.exception, exceptions.StartError)
        assert talk.machine.ending.outcome.exception.path == "app/c"

    def test_a_nested_failure_keeps_the_path_of_the_leaf(self):
        """A supervisor that did not come up hands on the error of the child that failed."""
        leaf = exceptions.StartError("app/s/x", "no")
        talk = Talk(nested("s"))
        talk.begin()
        talk.exit("s", ExitReason(ExitKind.SHUTDOWN, leaf))

        assert talk.machine.ending.outcome.exception is leaf

    def test_a_child_that_declines_is_kept_and_the_next_one_starts(self):
        """Ignore is no failure."""
        talk = Talk(child("a"), child("t", restart="temporary"), child("b"))
        talk.begin()
        ignore = ExitReason(ExitKind.NORMAL, exceptions.Ignore())

        assert talk.exit("a", ignore) == ["start t 1 as 2"]
        assert talk.exit("t", ignore) == ["start b 1 as 3"]
        assert talk.states() == {"a": "undefined", "b": "starting"}

    def test_a_crash_during_boot_is_handled_after_it(self):
        """A child that dies while a later sibling starts is restarted when all are up."""
        talk = Talk(child("a"), child("b"))
        talk.begin()
        talk.up("a")

        assert talk.exit("a") == []
        assert talk.up("b") == [
            "tell Progress app/b",
            "up",
            "tell ChildTerminated app/a crashed",
            "start a 2 as 3",
        ]

    def test_a_crash_during_a_boot_that_fails_is_collected_by_the_rollback(self):
        """It is judged like any end of a child that was told to stop, and nothing is restarted."""
        talk = Talk(child("a"), child("b"))
        talk.begin()
        talk.up("a")
        talk.exit("a")

        assert talk.exit("b") == [
            "tell StartFailed app/b crashed",
            "tell ShutdownError app/a crashed",
            "end shutdown a",
        ]

    def test_a_child_that_is_not_ready_in_time_has_failed(self):
        """It goes through the stop ladder first; then its start has failed."""
        talk = Talk(child("a", ready=True, start_timeout=2.0))

        assert talk.begin() == ["start a 1 as 1", "arm 1 at 2"]
        talk.now = 2.0
        assert talk.due("a") == ["stop 1", "arm 1 at 7"]
        assert talk.exit("a", SHUTDOWN) == [
            "disarm 1",
            "tell StartFailed app/a killed",
            "end shutdown",
        ]

    def test_a_child_that_is_ready_in_time_has_no_timer_any_more(self):
        """The start's deadline is cleared, by its success and by its failure."""
        talk = Talk(child("a", start_timeout=2.0), child("b", start_timeout=2.0))
        talk.begin()

        assert talk.up("a")[:2] == ["disarm 1", "tell Progress app/a"]
        assert talk.exit("b")[:2] == ["disarm 2", "tell StartFailed app/b crashed"]

    def test_a_stop_overtakes_the_boot(self):
        """What is starting is stopped, too; nothing that waits is started."""
        talk = Talk(child("a"), child("b"), child("c"))
        talk.begin()
        talk.up("a")

        assert talk.hear(StopSupervisor()) == ["stop 2", "arm 2 at 5"]
        assert talk.up("b") == []
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "end shutdown b a"]


class TestRestart:
    @pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
    @pytest.mark.parametrize(
        "reason", [NORMAL, SHUTDOWN, CRASH, KILLED, ExitReason(ExitKind.LIMIT_REACHED)]
    )
    def test_the_table(self, restart, reason):
        """Restart type and exit class decide; a limit breach below is of the normal class."""
        restarts = restart == "permanent" or (restart == "transient" and not reason.is_normal)
        told = restarts or (restart == "temporary" and not reason.is_normal)
        talk = booted(child("a", restart=restart))

        expected = [f"tell ChildTerminated app/a {reason.kind.value}"] * told + [
            "start a 2 as 2"
        ] * restarts
        assert talk.exit("a", reason) == expected
        assert ("a" in talk.machine.slots) == (restart != "temporary")

    def test_old_news_is_dropped(self):
        """What a former incarnation says changes nothing."""
        talk = booted(child("a"))
        talk.exit("a")

        assert talk.hear(ChildExited(1, CRASH)) == []
        assert talk.hear(ChildStarted(1)) == []
        assert talk.hear(messages.Due(1)) == []

    def test_a_failed_restart_is_tried_again_after_what_is_queued(self):
        """The machine orders a Retry instead of starting at once; each attempt spends a unit."""
        talk = booted(child("a"), intensity=2)
        talk.exit("a")

        assert talk.exit("a") == ["tell StartFailed app/a crashed", "again 3"]
        assert talk.states() == {"a": "restarting"}
        assert talk.retry() == ["start a 3 as 4"]
        assert talk.exit("a") == ["tell StartFailed app/a crashed", "again 5"]
        assert talk.retry() == [
            "tell LimitReached app crashed",
            "escalate app because of app/a",
            "end limit_reached",
        ]

    def test_one_for_all(self):
        """All others stop in reverse order, then all start in order; it is one unit."""
        talk = booted(child("a"), child("b"), child("c"), strategy="one_for_all", intensity=1)

        assert talk.exit("b") == ["tell ChildTerminated app/b crashed", "stop 3", "arm 3 at 5"]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "start a 2 as 4"]
        assert talk.up("a") == ["tell Progress app/a", "start b 2 as 5"]
        assert talk.up("b") == ["tell Progress app/b", "start c 2 as 6"]
        assert talk.up("c") == ["tell Progress app/c"]

    def test_rest_for_one(self):
        """Those after it stop in reverse order and start with it; those before it notice nothing."""
        talk = booted(child("a"), child("b"), child("c"), strategy="rest_for_one")

        assert talk.exit("b") == ["tell ChildTerminated app/b crashed", "stop 3", "arm 3 at 5"]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "start b 2 as 4"]
        assert talk.up("b") == ["tell Progress app/b", "start c 2 as 5"]

    def test_deaths_in_a_group_that_stops_are_absorbed(self):
        """A member that dies before its turn is not restarted for itself, and spends nothing."""
        talk = booted(child("a"), child("b"), child("c"), strategy="one_for_all", intensity=1)
        talk.exit("b")

        assert talk.exit("a") == ["tell ShutdownError app/a crashed"]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "start a 2 as 4"]

    def test_a_crash_during_the_starts_makes_a_new_plan(self):
        """A member that dies again while the group starts: what is starting is stopped, and the group starts again."""
        talk = booted(child("a"), child("b", ready=True), child("c"), strategy="one_for_all")
        talk.exit("a")
        talk.exit("c", SHUTDOWN)
        talk.exit("b", SHUTDOWN)
        talk.up("a")

        assert talk.exit("a") == ["tell ChildTerminated app/a crashed", "stop 5", "arm 5 at 5"]
        assert talk.exit("b", SHUTDOWN) == ["disarm 5", "start a 3 as 6"]

    def test_a_failed_start_in_a_group_leaves_the_rest_down_until_the_retry(self):
        """rest_for_one: the retry is anchored at the child that failed."""
        talk = booted(child("a"), child("b"), child("c"), strategy="rest_for_one")
        talk.exit("a")
        talk.exit("c", SHUTDOWN)
        talk.exit("b", SHUTDOWN)
        talk.up("a")

        assert talk.exit("b") == ["tell StartFailed app/b crashed", "again 6"]
        assert talk.states() == {"a": "running", "b": "restarting", "c": "undefined"}
        assert talk.retry() == ["start b 3 as 7"]
        assert talk.up("b") == ["tell Progress app/b", "start c 2 as 8"]

    def test_terminate_child_cancels_the_retry_of_the_whole_group(self):
        """Whoever takes the child out of RESTARTING cancels its retry; those behind it stay down."""
        talk = booted(child("a"), child("b"), strategy="rest_for_one")
        talk.exit("a")
        talk.exit("b", SHUTDOWN)
        talk.exit("a")

        assert talk.hear(messages.TerminateChild(reply="r", id="a")) == ["answer r: None"]
        assert talk.retry() == []
        assert talk.states() == {"a": "undefined", "b": "undefined"}

    def test_a_group_restart_makes_a_pending_retry_stale(self):
        """The group brings the waiting child up; its own retry is dropped."""
        talk = booted(child("a"), child("b"), strategy="one_for_all", intensity=5)
        talk.exit("a")
        talk.exit("b", SHUTDOWN)
        talk.up("a")
        talk.exit("b")
        stale = messages.Retry(talk.machine._last_ref)

        assert talk.exit("a")[-1] == "start a 3 as 6"
        assert talk.hear(stale) == []
        assert talk.up("a")[-1] == "start b 3 as 7"

    def test_a_temporary_bystander_does_not_come_back(self):
        """It stops with its group and is forgotten."""
        talk = booted(child("a"), child("t", restart="temporary"), strategy="one_for_all")
        talk.exit("a")

        assert talk.exit("t", SHUTDOWN) == ["disarm 2", "start a 2 as 3"]
        assert talk.up("a") == ["tell Progress app/a"]
        assert talk.states() == {"a": "running"}

    def test_fatal_makes_the_supervisor_give_up(self):
        """Whatever restarts are left, whatever the restart type."""
        talk = booted(child("a", restart="temporary"), child("b"))
        fatal = ExitReason(ExitKind.CRASHED, exceptions.Fatal("disk gone"))

        assert talk.exit("a", fatal) == [
            "tell ChildTerminated app/a crashed",
            "tell LimitReached app crashed",
            "escalate app because of app/a",
            "stop 2",
            "arm 2 at 5",
        ]

    @pytest.mark.parametrize(
        ("end", "kind"),
        [
            (
                lambda talk: talk.exit("a", ExitReason(ExitKind.CRASHED, exceptions.Fatal())),
                "limit_reached",
            ),
            (
                lambda talk: [
                    talk.hear(messages.TerminateChild(reply="r", id="b")),
                    talk.due("b"),
                    talk.due("b"),
                ],
                "limit_reached",
            ),
            (lambda talk: talk.hear(messages.TooManyUnstopped("app/s/x", 3)), "limit_reached"),
            (lambda talk: talk.exit("c", NORMAL), "shutdown: auto_shutdown"),
        ],
        ids=["Fatal", "escalate", "max_unstopped", "auto_shutdown"],
    )
    def test_a_supervisor_without_limit_ends_all_the_same(self, end, kind):
        """With intensity="infinity" only restarts do not end it."""
        talk = booted(
            child("a", backoff=Backoff(1, 1)),
            child("b", backoff=Backoff(1, 1), shutdown=0.0, unstopped="escalate"),
            child("c", backoff=Backoff(1, 1), restart="transient", significant=True),
            intensity="infinity",
            auto_shutdown="any_significant",
        )
        end(talk)

        assert str(talk.machine.ending.outcome).startswith(kind)

    def test_fatal_below_is_not_fatal_here(self):
        """A supervisor that gave up because of Fatal is restarted like any other."""
        talk = booted(nested("s"))
        below = ExitReason(ExitKind.LIMIT_REACHED, exceptions.Fatal("disk gone"))

        assert talk.exit("s", below) == [
            "tell ChildTerminated app/s limit_reached",
            "start s 2 as 2",
        ]

    def test_fatal_in_a_failed_restart(self):
        """There is no retry."""
        talk = booted(child("a"))
        talk.exit("a")

        assert talk.exit("a", ExitReason(ExitKind.CRASHED, exceptions.Fatal()))[:2] == [
            "tell StartFailed app/a crashed",
            "tell LimitReached app crashed",
        ]


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


class TestCalls:
    def test_refusals(self):
        """The table of refusals by state."""
        talk = booted(child("up"), child("down"), child("waits"), child("coming"), intensity=9)
        talk.hear(messages.TerminateChild(reply="", id="down"))
        talk.exit("down", SHUTDOWN)
        talk.exit("waits")
        talk.exit("waits")
        talk.exit("coming")
        answers = {
            (kind.__name__, id): talk.hear(_call(kind, id))
            for kind in (messages.StartChild, messages.RestartChild, messages.DeleteChild)
            for id in ("up", "coming", "waits", "nobody")
            if (kind, id) != (messages.StartChild, "nobody")
        }

        assert answers == {
            ("StartChild", "up"): ["refuse r: AlreadyStarted"],
            ("StartChild", "coming"): ["refuse r: AlreadyStarted"],
            ("StartChild", "waits"): ["refuse r: AlreadyPresent"],
            ("RestartChild", "up"): ["refuse r: StillRunning"],
            ("RestartChild", "coming"): ["refuse r: StillRunning"],
            ("RestartChild", "waits"): ["refuse r: StillRestarting"],
            ("RestartChild", "nobody"): ["refuse r: NotFound"],
            ("DeleteChild", "up"): ["refuse r: StillRunning"],
            ("DeleteChild", "coming"): ["refuse r: StillRunning"],
            ("DeleteChild", "waits"): ["refuse r: StillRestarting"],
            ("DeleteChild", "nobody"): ["refuse r: NotFound"],
        }
        assert talk.hear(_call(messages.StartChild, "down")) == ["refuse r: AlreadyPresent"]
        assert talk.hear(_call(messages.DeleteChild, "down")) == ["answer r: None"]
        assert talk.hear(_call(messages.TerminateChild, "nobody")) == ["refuse r: NotFound"]
        assert talk.hear(_call(messages.GetChildSpec, "nobody")) == ["refuse r: NotFound"]

    def test_start_child_answers_when_it_is_up(self):
        """The new child comes last; a failed one is not kept, and only the caller hears of it."""
        talk = booted(child("a"))

        assert talk.hear(_call(messages.StartChild, "n")) == ["start n 1 as 2"]
        assert talk.up("n") == ["tell Progress app/n", "answer r: n running"]
        talk.hear(_call(messages.StartChild, "m"))
        assert talk.exit("m") == ["refuse r: StartError"]
        assert talk.states() == {"a": "running", "n": "running"}

    def test_a_call_waits_for_a_child_that_is_stopping(self):
        """It is served when the child has come to rest."""
        talk = booted(child("a"))
        talk.hear(messages.TerminateChild(reply="t", id="a"))

        assert talk.hear(_call(messages.RestartChild, "a")) == []
        assert talk.hear(messages.TerminateChild(reply="u", id="a")) == []
        assert talk.exit("a", SHUTDOWN) == [
            "disarm 1",
            "answer t: None",
            "answer u: None",
            "start a 2 as 2",
        ]

    def test_a_call_waits_for_a_group_restart_and_a_query_does_not(self):
        """Meddling with a plan has to wait until it is over."""
        talk = booted(child("a"), child("b"), strategy="one_for_all")
        talk.exit("a")

        assert talk.hear(messages.TerminateChild(reply="t", id="a")) == []
        assert talk.hear(messages.CountChildren(reply="c")) == [
            f"answer c: {Counts(specs=2, active=1, supervisors=0, workers=2)}"
        ]
        talk.exit("b", SHUTDOWN)
        talk.up("a")
        assert talk.up("b") == ["tell Progress app/b", "stop 3", "arm 3 at 5"]

    def test_calls_that_wait_are_refused_by_the_end(self):
        """Also those that wait for one child only; later ones are refused at once."""
        talk = booted(child("a"), child("b"), strategy="one_for_all")
        talk.hear(messages.TerminateChild(reply="t", id="b"))
        talk.hear(_call(messages.RestartChild, "b"))
        talk.exit("a")
        talk.hear(_call(messages.DeleteChild, "a"))

        assert talk.hear(StopSupervisor()) == ["refuse r: NotAlive", "refuse r: NotAlive"]
        assert talk.hear(_call(messages.StartChild, "n")) == ["refuse r: NotAlive"]
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "answer t: None", "end shutdown b"]

    def test_a_child_cannot_terminate_itself(self):
        """It would wait for its own end."""
        talk = booted(child("a"))

        assert talk.hear(messages.TerminateChild(reply="r", inside="a", id="a")) == [
            "refuse r: WouldDeadlock"
        ]

    def test_a_child_cannot_wait_for_a_plan_that_waits_for_it(self):
        """It is starting, or about to be stopped."""
        talk = Talk(child("a", ready=True))
        talk.begin()

        assert talk.hear(_call(messages.StartChild, "n", inside="a")) == ["refuse r: WouldDeadlock"]

    def test_a_child_that_is_to_stop_is_released_from_its_calls(self):
        """Blocked in a call that waits for the plan it could not stop when the plan wants it to."""
        talk = booted(child("a"), child("b"), child("c", ready=True), strategy="one_for_all")
        talk.exit("a")
        talk.exit("c", SHUTDOWN)
        talk.exit("b", SHUTDOWN)
        talk.up("a", "b")
        assert talk.hear(_call(messages.StartChild, "n", inside="a")) == []

        assert talk.exit("b") == ["tell ChildTerminated app/b crashed", "stop 6", "arm 6 at 5"]
        assert talk.exit("c", SHUTDOWN) == [
            "disarm 6",
            "refuse r: WouldDeadlock",
            "stop 4",
            "arm 4 at 5",
        ]

    def test_a_start_that_a_stop_overtakes_is_refused(self):
        """start_child and terminate_child of the same child: the starter hears of it, and nothing is kept."""
        talk = booted()
        talk.hear(_call(messages.StartChild, "n"))
        talk.hear(messages.TerminateChild(reply="t", id="n"))

        assert talk.exit("n", SHUTDOWN) == ["disarm 1", "refuse r: StartError", "answer t: None"]
        assert talk.states() == {}

    def test_a_start_that_fails_while_its_group_stops_is_refused(self):
        """It is absorbed by the plan, and its caller hears of it."""
        talk = booted(child("a"), child("b", shutdown="infinity"), strategy="one_for_all")
        talk.hear(_call(messages.StartChild, "n"))
        talk.hear(_call(messages.StartChild, "m"))
        talk.exit("a")

        assert talk.exit("n") == ["tell ShutdownError app/n crashed", "refuse r: StartError"]

    def test_a_dynamic_supervisor_has_room_for_so_many(self):
        """max_children counts all entries, those that wait for a restart included."""
        talk = booted(dynamic=True, max_children=1)
        talk.hear(_call(messages.StartChild, "n"))

        assert talk.hear(_call(messages.StartChild, "m")) == ["refuse r: MaxChildren"]

    def test_a_dynamic_child_leaves_no_spec_behind(self):
        """Neither after its own end nor after terminate_child."""
        talk = booted(dynamic=True)
        for id in "nm":
            talk.hear(messages.StartChild(reply="r", spec=child(id, restart="transient")))
            talk.up(id)
        talk.exit("n", NORMAL)
        talk.hear(messages.TerminateChild(reply="t", id="m"))
        talk.exit("m", SHUTDOWN)

        assert talk.states() == {}

    def test_a_significant_child_needs_a_supervisor_that_cares(self):
        """The same rule as for children that are listed."""
        talk = booted()
        spec = child("n", restart="transient", significant=True)

        assert talk.hear(messages.StartChild(reply="r", spec=spec)) == ["refuse r: SpecError"]

    def test_stray_messages_are_reported_and_ignored(self):
        """Whatever lies on the queue."""
        assert booted().hear("garbage") == ["tell StrayMessage app"]


def _call(kind, id, inside=None):
    if kind is messages.StartChild:
        return kind(reply="r", inside=inside, spec=child(id))
    return kind(reply="r", inside=inside, id=id)


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
