"""The machine, as dialogues: a message in, the whole list of actions out.

Here: the boot, and restarts.
"""

from __future__ import annotations

import pytest

from otpy import Backoff, exceptions
from otpy.core import messages
from otpy.core.messages import ChildExited, ChildStarted, StopSupervisor
from otpy.reports import ExitKind, ExitReason
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
