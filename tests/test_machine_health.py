"""The machine, as dialogues: stalls, waits before restarts, and detaching."""

from __future__ import annotations

import pytest

from otpy import Backoff, exceptions
from otpy.core import messages
from otpy.core.messages import ChildExited, StopSupervisor
from otpy.reports import ExitKind, ExitReason
from tests.machine_talk import CRASH, KILLED, NORMAL, SHUTDOWN, Talk, booted, child, nested

STEADY = Backoff(2.0, 8.0, jitter=0.0)


def at(talk, now):
    talk.now = now
    return talk


def last_exit(talk, id):
    return talk.machine.slots[id].last_exit


class TestStalls:
    def test_the_deadline_is_set_when_the_child_is_up(self):
        """Not before: a start has its own limit."""
        talk = Talk(child("a", heartbeat=3.0, start_timeout=1.0))

        assert talk.begin() == ["start a 1 as 1", "arm 1 at 1"]
        assert at(talk, 0.5).up("a") == ["arm 1 at 3.5", "tell Progress app/a", "up"]

    def test_a_check_in_moves_the_deadline_when_it_comes(self):
        """The machine hears of check-ins at the deadline only."""
        talk = booted(child("a", heartbeat=3.0))

        assert at(talk, 3.0).due("a", silent_until=5.5) == ["arm 1 at 5.5"]
        assert at(talk, 5.5).due("a", silent_until=5.5) == [
            "expose 1: app/a 1",
            "stop 1",
            "arm 1 at 10.5",
        ]
        assert talk.states() == {"a": "stopping"}

    def test_a_stalled_child_is_judged_as_a_crash_when_it_has_ended(self):
        """However it ends when it is stopped: it is told and remembered as STALLED, and restarted."""
        talk = booted(child("a", heartbeat=3.0))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.exit("a", SHUTDOWN) == [
            "disarm 1",
            "tell ChildTerminated app/a stalled",
            "start a 2 as 2",
        ]
        assert last_exit(talk, "a").kind is ExitKind.STALLED

    def test_a_stuck_child_is_replaced(self):
        """It is interrupted, given up, and then judged; what it says an hour later changes nothing."""
        talk = booted(child("a", heartbeat=3.0, shutdown=1.0))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert at(talk, 4.0).due("a") == ["kill 1", "arm 1 at 4.5"]
        assert at(talk, 4.5).due("a") == [
            "disarm 1",
            "abandon 1: app/a 1",
            "tell ChildTerminated app/a stalled",
            "start a 2 as 2",
        ]
        assert at(talk, 3600.0).hear(ChildExited(1, NORMAL)) == []
        assert talk.states() == {"a": "starting"}

    def test_the_strategy_applies_as_for_a_crash(self):
        """First the stalled child is stopped, then its group."""
        talk = booted(child("a"), child("b", heartbeat=3.0), child("c"), strategy="rest_for_one")
        at(talk, 3.0).due("b", silent_until=3.0)

        assert talk.exit("b", SHUTDOWN) == [
            "disarm 2",
            "tell ChildTerminated app/b stalled",
            "stop 3",
            "arm 3 at 8",
        ]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "start b 2 as 4"]

    def test_a_transient_child_that_stalls_is_restarted_and_a_temporary_one_is_not(self):
        """A stall is an abnormal exit."""
        for restart, then in (("transient", ["start a 2 as 2"]), ("temporary", [])):
            talk = booted(child("a", heartbeat=3.0, restart=restart))
            at(talk, 3.0).due("a", silent_until=3.0)

            assert talk.exit("a", SHUTDOWN) == [
                "disarm 1",
                "tell ChildTerminated app/a stalled",
                *then,
            ]

    def test_it_spends_a_unit(self):
        """And the last one makes the supervisor give up, because of the stall."""
        talk = booted(child("a", heartbeat=3.0), intensity=0)
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.exit("a", KILLED) == [
            "disarm 1",
            "tell ChildTerminated app/a stalled",
            "tell LimitReached app stalled",
            "escalate app because of app/a",
            "end limit_reached",
        ]

    def test_terminate_child_overtakes_it(self):
        """A caller wanted it down: it stays down, and its end is judged as a stop."""
        talk = booted(child("a", heartbeat=3.0))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.hear(messages.TerminateChild(reply="r", id="a")) == []
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "answer r: None"]
        assert talk.states() == {"a": "undefined"}

    def test_a_group_restart_overtakes_it(self):
        """The stalled child is stopped already; the group waits for its end and it comes back with it."""
        talk = booted(child("a", heartbeat=3.0), child("b"), strategy="one_for_all")
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.exit("b") == ["tell ChildTerminated app/b crashed"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "start a 2 as 3"]

    def test_an_end_overtakes_it(self):
        """Nothing is started any more."""
        talk = booted(child("a", heartbeat=3.0))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.hear(StopSupervisor()) == []
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "end shutdown a"]

    def test_a_child_that_is_about_to_be_stopped_need_not_check_in(self):
        """Its turn comes."""
        talk = booted(child("a", heartbeat=3.0), child("b"))
        talk.hear(StopSupervisor())

        assert at(talk, 3.0).due("a", silent_until=3.0) == []

    def test_calls_about_a_stalled_child_wait_for_its_end(self):
        """As for any child that is being stopped."""
        talk = booted(child("a", heartbeat=3.0, restart="temporary"), child("b"))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.hear(messages.StartChild(reply="r", spec=child("a"))) == []
        assert talk.exit("a", SHUTDOWN) == [
            "disarm 1",
            "tell ChildTerminated app/a stalled",
            "start a 1 as 3",
        ]

    def test_calls_about_a_stalled_child_that_ends_the_supervisor_are_refused(self):
        """Found by the walks: nothing must be started for a call when its end has ended everything."""
        talk = booted(
            child("a", heartbeat=3.0, restart="temporary", significant=True),
            auto_shutdown="any_significant",
        )
        at(talk, 3.0).due("a", silent_until=3.0)
        talk.hear(messages.StartChild(reply="r", spec=child("a")))

        assert talk.exit("a", SHUTDOWN) == [
            "disarm 1",
            "tell ChildTerminated app/a stalled",
            "tell AutoShutdownBegun app stalled",
            "refuse r: NotAlive",
            "end shutdown",
        ]

    def test_a_stall_during_boot_is_found_on_time_and_judged_after_it(self):
        """As a crash during boot is."""
        talk = Talk(child("a", heartbeat=3.0), child("b"))
        talk.begin()
        talk.up("a")

        assert at(talk, 3.0).due("a", silent_until=3.0) == [
            "expose 1: app/a 1",
            "stop 1",
            "arm 1 at 8",
        ]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1"]
        assert at(talk, 9.0).up("b") == [
            "tell Progress app/b",
            "up",
            "tell ChildTerminated app/a stalled",
            "start a 2 as 3",
        ]

    def test_a_child_that_was_given_up_during_boot_is_heard_of_once(self):
        """What it says when it wakes up is not taken for its end a second time."""
        talk = Talk(child("a", heartbeat=3.0, shutdown="brutal_kill"), child("b"))
        talk.begin()
        talk.up("a")
        at(talk, 3.0).due("a", silent_until=3.0)
        talk.due("a")

        assert talk.hear(ChildExited(1, NORMAL)) == []
        assert talk.up("b")[-2:] == ["tell ChildTerminated app/a stalled", "start a 2 as 3"]

    def test_a_crash_clears_the_deadline(self):
        """Otherwise the supervisor would wake up for nobody."""
        talk = booted(child("a", heartbeat=3.0))

        assert talk.exit("a") == [
            "disarm 1",
            "tell ChildTerminated app/a crashed",
            "start a 2 as 2",
        ]

    def test_held_it_is_judged_when_it_has_ended(self):
        """With unstopped="hold" there is no replacement before."""
        talk = booted(child("a", heartbeat=3.0, shutdown="brutal_kill", unstopped="hold"))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.due("a") == ["disarm 1", "abandon 1: app/a 1"]
        assert talk.states() == {"a": "unstopped"}
        assert talk.exit("a", NORMAL) == ["tell ChildTerminated app/a stalled", "start a 2 as 2"]

    def test_escalated_nothing_is_started_first(self):
        """With unstopped="escalate" the supervisor gives up instead."""
        talk = booted(child("a", heartbeat=3.0, shutdown="brutal_kill", unstopped="escalate"))
        at(talk, 3.0).due("a", silent_until=3.0)

        assert talk.due("a") == [
            "disarm 1",
            "abandon 1: app/a 1",
            "tell LimitReached app killed",
            "escalate app because of app/a",
            "end limit_reached",
        ]


class TestWaits:
    def test_a_failed_child_waits(self):
        """The end is told at once; the unit is spent and the child started when the wait is over."""
        talk = booted(child("a", backoff=STEADY))

        assert talk.exit("a") == ["tell ChildTerminated app/a crashed", "arm 2 at 2"]
        assert talk.states() == {"a": "restarting"}
        assert talk.machine.window.left(0.0) == 3
        assert at(talk, 2.0).due("a") == ["disarm 2", "start a 2 as 3"]
        assert talk.machine.window.left(2.0) == 2

    def test_the_due_time_is_told(self):
        """In which_children and in a snapshot."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")
        (answer,) = at(talk, 0.5).machine.receive(messages.WhichChildren(reply="r"), 0.5)

        assert answer.value[0].due == 1.5

    def test_failures_in_a_row_wait_longer(self):
        """Up to the maximum; a failed restart is one of them."""
        talk = booted(child("a", backoff=STEADY), intensity=10)

        assert talk.exit("a")[-1] == "arm 2 at 2"
        at(talk, 2.0).due("a")
        assert talk.exit("a") == ["tell StartFailed app/a crashed", "arm 4 at 6"]
        at(talk, 6.0).due("a")
        assert talk.exit("a")[-1] == "arm 6 at 14"
        at(talk, 14.0).due("a")
        assert talk.exit("a")[-1] == "arm 8 at 22"

    def test_a_calm_child_starts_over(self):
        """After reset_after seconds up."""
        talk = booted(child("a", backoff=STEADY), intensity=10)
        talk.exit("a")
        at(talk, 2.0).due("a")
        talk.up("a")
        at(talk, 61.9).exit("a")

        assert talk.machine.slots["a"].due == 61.9 + 4.0
        at(talk, 65.9).due("a")
        talk.up("a")
        at(talk, 125.9).exit("a")
        assert talk.machine.slots["a"].due == 125.9 + 2.0

    def test_time_up_counts_also_when_it_ended_with_a_stop(self):
        """A stop by a group restart is no failure, and does not hide that it was calm."""
        talk = booted(child("a", backoff=STEADY), child("b"), strategy="one_for_all", intensity=10)
        talk.exit("a")
        talk.exit("b", SHUTDOWN)
        at(talk, 2.0).due("a")
        talk.up("a", "b")
        at(talk, 70.0).exit("b")
        talk.exit("a", SHUTDOWN)
        talk.up("a", "b")

        at(talk, 71.0).exit("a")
        assert talk.machine.slots["a"].due == 73.0

    def test_a_unit_that_is_refused_after_the_wait(self):
        """The limit is looked at when the restart is due."""
        talk = booted(child("a", backoff=STEADY), intensity=0)

        assert talk.exit("a") == ["tell ChildTerminated app/a crashed", "arm 2 at 2"]
        assert at(talk, 2.0).due("a") == [
            "disarm 2",
            "tell LimitReached app crashed",
            "escalate app because of app/a",
            "end limit_reached",
        ]

    def test_waits_as_long_as_the_period_never_reach_the_limit(self):
        """The window counts restarts by time, and nothing else."""
        talk = booted(child("a", backoff=Backoff(6.0, 6.0, jitter=0.0)), intensity=1)
        for _ in range(100):
            assert talk.exit("a")[-1].startswith("arm")
            assert talk.hear(messages.Due(talk.machine.slots["a"].ref))[-1].startswith("start")
            talk.now += 6.0

    def test_terminate_child_cancels_the_wait(self):
        """It costs nothing, and the child stays down."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")

        assert talk.hear(messages.TerminateChild(reply="r", id="a")) == [
            "disarm 2",
            "answer r: None",
        ]
        assert at(talk, 2.0).hear(messages.Due(2)) == []
        assert (talk.states(), talk.machine.window.left(2.0)) == ({"a": "undefined"}, 3)

    def test_restart_child_starts_it_now(self):
        """It costs nothing either, and is not counted as a restart."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")

        assert talk.hear(messages.RestartChild(reply="r", id="a")) == ["disarm 2", "start a 2 as 3"]
        assert talk.up("a") == ["tell Progress app/a", "answer r: a running"]
        assert (talk.machine.slots["a"].restarts, talk.machine.window.left(0.0)) == (0, 3)

    @pytest.mark.parametrize(
        ("call", "refusal"),
        [(messages.DeleteChild, "StillRestarting"), (messages.StartChild, "AlreadyPresent")],
    )
    def test_other_calls_are_refused(self, call, refusal):
        """As for any child that is restarting."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")
        about = {"spec": child("a")} if call is messages.StartChild else {"id": "a"}

        assert talk.hear(call(reply="r", **about)) == [f"refuse r: {refusal}"]

    def test_the_end_cancels_it(self):
        """A supervisor does not wait for what nobody will start."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")

        assert talk.hear(StopSupervisor()) == ["disarm 2", "end shutdown"]

    def test_two_wait_side_by_side(self):
        """One for one: each has its own ledger and its own time."""
        talk = booted(child("a", backoff=STEADY), child("b", backoff=STEADY))
        talk.exit("a")

        assert at(talk, 1.0).exit("b") == ["tell ChildTerminated app/b crashed", "arm 4 at 3"]
        assert at(talk, 2.0).due("a") == ["disarm 3", "start a 2 as 5"]
        assert at(talk, 3.0).due("b") == ["disarm 4", "start b 2 as 6"]

    def test_a_fatal_end_does_not_wait(self):
        """It makes the supervisor give up now."""
        talk = booted(child("a", backoff=STEADY))

        assert (
            talk.exit("a", ExitReason(ExitKind.CRASHED, exceptions.Fatal()))[-1]
            == "end limit_reached"
        )


class TestGroupsWait:
    def trio(self, strategy="one_for_all"):
        return booted(child("a"), child("b", backoff=STEADY), child("c"), strategy=strategy)

    def test_the_group_is_stopped_at_once_and_waits_once(self):
        """Then all start, in order, for one unit."""
        talk = self.trio()

        assert talk.exit("b") == [
            "tell ChildTerminated app/b crashed",
            "arm 4 at 2",
            "stop 3",
            "arm 3 at 5",
        ]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "stop 1", "arm 1 at 5"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1"]
        assert talk.states() == {"a": "undefined", "b": "restarting", "c": "undefined"}
        assert at(talk, 2.0).due("b") == ["disarm 4", "start a 2 as 5"]
        assert talk.up("a")[-1] == "start b 2 as 6"
        assert talk.up("b")[-1] == "start c 2 as 7"
        assert talk.machine.window.left(2.0) == 2

    def test_only_the_group_waits(self):
        """With rest_for_one those before stay up."""
        talk = self.trio("rest_for_one")
        talk.exit("b")
        talk.exit("c", SHUTDOWN)

        assert talk.states() == {"a": "running", "b": "restarting", "c": "undefined"}

    def test_a_wait_that_ends_before_the_stops_do(self):
        """The group restart goes on from there."""
        talk = self.trio()
        talk.exit("b")

        assert at(talk, 2.0).due("b") == ["disarm 4"]
        assert talk.exit("c", SHUTDOWN) == ["disarm 3", "stop 1", "arm 1 at 7"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "start a 2 as 5"]

    def test_another_group_restart_absorbs_the_wait(self):
        """It brings the waiting child up, and there is no second restart."""
        talk = self.trio("rest_for_one")
        talk.exit("b")
        talk.exit("c", SHUTDOWN)

        assert talk.exit("a") == [
            "tell ChildTerminated app/a crashed",
            "disarm 4",
            "start a 2 as 5",
        ]
        assert talk.up("a")[-1] == "start b 2 as 6"
        assert talk.up("b")[-1] == "start c 2 as 7"

    def test_terminate_child_brings_the_others_back(self):
        """They were down because of that child only."""
        talk = self.trio()
        talk.exit("b")
        talk.exit("c", SHUTDOWN)
        talk.exit("a", SHUTDOWN)

        assert talk.hear(messages.TerminateChild(reply="r", id="b")) == [
            "disarm 4",
            "answer r: None",
            "start a 2 as 5",
        ]
        assert talk.up("a")[-1] == "start c 2 as 6"
        assert (talk.states()["b"], talk.machine.window.left(0.0)) == ("undefined", 3)

    def test_terminate_child_restarts_who_was_started_too_early(self):
        """Found by the walks: a child that a caller has started while the group waited stands after one that comes."""
        talk = self.trio()
        talk.exit("b")
        talk.exit("c", SHUTDOWN)
        talk.exit("a", SHUTDOWN)
        talk.hear(messages.RestartChild(reply="r", id="c"))
        talk.up("c")

        assert talk.hear(messages.TerminateChild(reply="s", id="b"))[-2:] == [
            "stop 5",
            "arm 5 at 5",
        ]
        assert talk.exit("c", SHUTDOWN) == ["disarm 5", "start a 2 as 6"]

    def test_restart_child_starts_the_whole_group_now(self):
        """The caller is answered when the child is up."""
        talk = self.trio()
        talk.exit("b")
        talk.exit("c", SHUTDOWN)
        talk.exit("a", SHUTDOWN)

        assert talk.hear(messages.RestartChild(reply="r", id="b")) == ["disarm 4", "start a 2 as 5"]
        assert talk.up("a")[-1] == "start b 2 as 6"
        assert talk.up("b") == ["tell Progress app/b", "answer r: b running", "start c 2 as 7"]
        assert (talk.machine.slots["b"].restarts, talk.machine.window.left(0.0)) == (0, 3)

    def test_a_caller_does_not_wait_for_a_group_that_waits_again(self):
        """The group goes down once more before the child's turn has come: the call has failed."""
        talk = booted(
            child("a", backoff=STEADY), child("b", backoff=STEADY), strategy="one_for_all"
        )
        talk.exit("b")
        talk.exit("a", SHUTDOWN)
        talk.hear(messages.RestartChild(reply="r", id="b"))

        assert talk.exit("a") == [
            "tell StartFailed app/a crashed",
            "refuse r: StartError",
            "arm 5 at 2",
        ]

    def test_a_caller_does_not_wait_for_a_group_that_is_broken_off(self):
        """The same without a wait: what the plan has not started stays down until the retry."""
        talk = booted(child("a"), child("b", backoff=STEADY), strategy="one_for_all")
        talk.exit("b")
        talk.exit("a", SHUTDOWN)
        talk.hear(messages.RestartChild(reply="r", id="b"))

        assert talk.exit("a") == [
            "tell StartFailed app/a crashed",
            "again 5",
            "refuse r: StartError",
        ]

    def test_a_caller_does_not_wait_for_a_supervisor_that_ends(self):
        """Its start will never come."""
        talk = booted(child("a"), child("b", backoff=STEADY), strategy="one_for_all")
        talk.exit("b")
        talk.exit("a", SHUTDOWN)
        talk.hear(messages.RestartChild(reply="r", id="b"))

        assert "refuse r: StartError" in talk.hear(StopSupervisor())

    def test_a_failed_group_restart_takes_the_started_down_again(self):
        """They would otherwise run without the one that they depend on, for as long as it waits."""
        talk = self.trio()
        talk.exit("b")
        talk.exit("c", SHUTDOWN)
        talk.exit("a", SHUTDOWN)
        at(talk, 2.0).due("b")
        talk.up("a")

        assert talk.exit("b") == [
            "tell StartFailed app/b crashed",
            "arm 7 at 6",
            "stop 5",
            "arm 5 at 7",
        ]

    def test_a_held_child_comes_back_with_its_group(self):
        """Found by the walks: its thread ends while the group waits, and that starts nobody."""
        talk = booted(
            child("a", backoff=STEADY),
            child("b", shutdown="brutal_kill", unstopped="hold"),
            strategy="rest_for_one",
            intensity=9,
        )
        talk.exit("a")
        talk.due("b")
        at(talk, 2.0).due("a")
        assert talk.up("a") == ["tell Progress app/a"]
        talk.exit("a")

        assert talk.exit("b", NORMAL) == []
        assert at(talk, 6.0).due("a")[-1] == "start a 3 as 6"
        assert talk.up("a")[-1] == "start b 2 as 7"

    def test_who_waits_with_its_group_is_coming_back(self):
        """So all_significant does not end the supervisor meanwhile."""
        talk = booted(
            child("a", restart="transient", significant=True),
            child("b", backoff=STEADY),
            child("c", restart="transient", significant=True),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("b")
        talk.exit("c", SHUTDOWN)

        assert talk.exit("a", NORMAL) == []
        assert talk.machine.phase.value == "up"

    def test_who_is_about_to_be_started_is_coming_back(self):
        """The same in the middle of a group restart."""
        talk = booted(
            child("a", restart="transient", significant=True),
            child("b"),
            child("c", restart="transient", significant=True),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("b")
        talk.exit("c", SHUTDOWN)

        assert talk.exit("a", NORMAL) == []
        assert talk.up("b")[-1] == "start c 2 as 5"


class TestDetach:
    def test_workers_run_on(self):
        """Nobody is stopped, and the supervisor ends."""
        talk = booted(child("a", heartbeat=3.0), child("b"))

        assert talk.hear(StopSupervisor(detach=True)) == [
            "disarm 2",
            "detach 2",
            "disarm 1",
            "detach 1",
            "end shutdown b~ a~",
        ]
        assert talk.machine.ending.outcome.detail == "detached"

    def test_a_nested_supervisor_does_the_same_and_ends(self):
        """Its parent waits for that."""
        talk = booted(child("a"), nested("s"))

        assert talk.hear(StopSupervisor(detach=True)) == ["disarm 2", "detach 2"]
        assert talk.exit("s", SHUTDOWN) == ["disarm 2", "disarm 1", "detach 1", "end shutdown s a~"]

    def test_who_stops_already_is_waited_for(self):
        """It was told to stop, and does so."""
        talk = booted(child("a"), child("b"))
        talk.hear(messages.TerminateChild(reply="r", id="a"))

        assert talk.hear(StopSupervisor(detach=True)) == ["disarm 2", "detach 2"]
        assert talk.exit("a", SHUTDOWN) == ["disarm 1", "answer r: None", "end shutdown a b~"]

    def test_who_starts_runs_on_and_its_caller_is_told(self):
        """Nobody will hear of the end of that start."""
        talk = booted()
        talk.hear(messages.StartChild(reply="r", spec=child("a")))

        assert talk.hear(StopSupervisor(detach=True)) == [
            "disarm 1",
            "detach 1",
            "refuse r: StartError",
            "end shutdown a~",
        ]

    def test_restarts_are_called_off(self):
        """There is nobody left to make them."""
        talk = booted(child("a", backoff=STEADY))
        talk.exit("a")

        assert talk.hear(StopSupervisor(detach=True)) == ["disarm 2", "end shutdown"]

    def test_an_end_cannot_be_turned_into_it(self):
        """Who has been told to stop is not let go."""
        talk = booted(child("a"), child("b"))
        talk.hear(StopSupervisor())

        assert talk.hear(StopSupervisor(detach=True)) == []
        assert talk.exit("b", SHUTDOWN) == ["disarm 2", "stop 1", "arm 1 at 5"]

    def test_a_parent_detaches_one_supervisor(self):
        """It stays down, as after terminate_child; the siblings are not touched."""
        talk = booted(child("a"), nested("s"))

        assert talk.hear(messages.TerminateChild(reply="r", id="s", detach=True)) == [
            "disarm 2",
            "detach 2",
        ]
        assert talk.exit("s", SHUTDOWN) == ["disarm 2", "answer r: None"]
        assert talk.states() == {"a": "running", "s": "undefined"}
        talk.hear(messages.RestartChild(reply="r", id="s"))
        talk.up("s")
        assert talk.hear(messages.TerminateChild(reply="r", id="s")) == ["stop 3", "disarm 3"]

    def test_a_child_may_detach_the_supervisor_that_it_hangs_in(self):
        """It need not end for that."""
        talk = booted(nested("s"))

        assert talk.hear(messages.TerminateChild(reply="r", id="s", inside="s", detach=True)) == [
            "disarm 1",
            "detach 1",
        ]


def test_a_crash_while_a_sibling_starts_for_ever_is_dealt_with():
    """Nothing here waits for a start but what the strategy makes wait."""
    talk = booted(child("a", heartbeat=3.0), child("b"))
    talk.exit("b", CRASH)

    assert at(talk, 3.0).due("a", silent_until=3.0) == ["expose 1: app/a 1", "stop 1", "arm 1 at 8"]
