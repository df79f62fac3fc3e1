"""Rules of OTP where stimuli overlap: what a plan drops it releases, and who counts as
up or coming is asked once.

Most are dialogues with a machine; the last ones run real trees. The walks and the look
at small supervisors (tests/test_walks.py) look for more of the kind.
"""

from __future__ import annotations

import threading

import pytest

import otpy
from otpy import Backoff, exceptions
from otpy.core import messages
from otpy.core.endings import Phase
from otpy.core.messages import StopSupervisor
from otpy.reports import ExitKind, ExitReason
from tests.helpers import HANG, Puppet, wait_until
from tests.machine_talk import CRASH, KILLED, NORMAL, SHUTDOWN, booted, child

IGNORE = ExitReason(ExitKind.NORMAL, exceptions.Ignore())
STEADY = Backoff(2.0, 8.0, jitter=0.0)


def start(spec, reply="r", inside=None):
    return messages.StartChild(reply=reply, inside=inside, spec=spec)


def terminate(id, reply="t", inside=None):
    return messages.TerminateChild(reply=reply, inside=inside, id=id)


def restart(id, reply="r"):
    return messages.RestartChild(reply=reply, id=id)


def finished(id):
    return child(id, restart="transient", significant=True)


def passing(id):
    return child(id, restart="temporary", significant=True)


ENDS = "tell AutoShutdownBegun app normal"


class TestAllSignificant:
    """The supervisor ends when no significant child runs or will be started again."""

    def test_one_that_is_being_terminated_does_not_count(self):
        """OTP is blocked by terminate_child, and reads the end of the other one when it
        is over.
        """
        talk = booted(finished("s"), passing("t"), auto_shutdown="all_significant")
        talk.hear(terminate("t"))

        assert ENDS in talk.exit("s", NORMAL)
        assert talk.exit("t", SHUTDOWN)[-1] == "end shutdown t"

    def test_one_that_is_held_for_after_it_was_terminated_does_not_count(self):
        """It could not be stopped; nobody waits for it any more."""
        held = child(
            "t", restart="transient", significant=True, shutdown="brutal_kill", unstopped="hold"
        )
        talk = booted(finished("s"), held, auto_shutdown="all_significant")
        talk.hear(terminate("t"))
        talk.due("t")

        assert talk.states()["t"] == "unstopped"
        assert ENDS in talk.exit("s", NORMAL)

    @pytest.mark.parametrize(
        "stopped", [False, True], ids=["its turn is to come", "it is being stopped"]
    )
    def test_a_temporary_bystander_does_not_count(self, stopped):
        """It does not come back, whether it has been asked to stop or not."""
        talk = booted(
            finished("s"),
            child("a"),
            passing("t"),
            child("z"),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("a")
        if stopped:
            talk.exit("z", SHUTDOWN)

        assert ENDS in talk.exit("s", NORMAL)

    def test_a_temporary_bystander_that_has_gone_does_not_count(self):
        """While the group starts."""
        talk = booted(
            finished("s"),
            child("a"),
            passing("t"),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("a")
        talk.exit("t", SHUTDOWN)

        assert talk.states() == {"s": "running", "a": "starting"}
        assert ENDS in talk.exit("s", NORMAL)

    def test_a_bystander_that_comes_back_counts(self):
        """A transient one is started again; when it is up, the end of the other one is
        past.
        """
        talk = booted(
            finished("s"),
            child("a"),
            finished("t"),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("a")

        assert talk.exit("s", NORMAL) == []
        talk.exit("t", SHUTDOWN)
        talk.up("a", "t")
        assert talk.hear(terminate("t")) == ["stop 5", "arm 5 at 5"]
        assert talk.exit("t", SHUTDOWN) == ["disarm 5", "answer t: None"]

    @pytest.mark.parametrize("reason", [CRASH, IGNORE], ids=["fails", "declines"])
    def test_a_start_that_comes_to_nothing_ends_it(self, reason):
        """OTP is blocked by start_child; when that is over, none is left."""
        talk = booted(finished("s"), auto_shutdown="all_significant")
        talk.hear(start(finished("n")))

        assert talk.exit("s", NORMAL) == []
        assert ENDS in talk.exit("n", reason)

    def test_a_bystander_that_declines_when_it_comes_back_ends_it(self):
        """The same in a group restart."""
        talk = booted(
            finished("s"),
            child("a"),
            finished("t"),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("a")
        talk.exit("t", SHUTDOWN)

        assert talk.exit("s", NORMAL) == []
        talk.up("a")
        assert ENDS in talk.exit("t", IGNORE)

    def test_a_restart_that_fails_waits_and_counts(self):
        """OTP: a slot that is "restarting" counts; terminate_child, which cancels that,
        does not end the supervisor.
        """
        talk = booted(finished("s"), finished("t"), auto_shutdown="all_significant")
        talk.exit("t")

        assert talk.exit("s", NORMAL) == []
        assert talk.exit("t") == ["tell StartFailed app/t crashed", "again 4"]
        assert talk.hear(terminate("t")) == ["answer t: None"]
        assert talk.states() == {"s": "undefined", "t": "undefined"}

    def test_terminate_child_of_one_that_starts_does_not_end_it(self):
        """It never does: the start that it overtakes counts as one that came up."""
        talk = booted(finished("s"), auto_shutdown="all_significant")
        talk.hear(start(finished("n")))
        talk.exit("s", NORMAL)
        talk.hear(terminate("n"))

        assert talk.exit("n", SHUTDOWN) == ["disarm 2", "refuse r: StartError", "answer t: None"]

    def test_a_group_whose_restart_is_cancelled_ends_it(self):
        """Who was to come back with another child does not come any more."""
        talk = booted(
            finished("s"),
            child("a"),
            finished("t"),
            strategy="rest_for_one",
            auto_shutdown="all_significant",
        )
        talk.exit("a")
        talk.exit("t", SHUTDOWN)
        talk.exit("a")

        assert talk.exit("s", NORMAL) == []
        assert talk.hear(terminate("a")) == ["answer t: None", ENDS, "end shutdown"]


class TestBystanders:
    """A temporary child that was stopped in a group restart is forgotten before the
    group starts.
    """

    @pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
    def test_it_goes_before_the_group_starts(self, strategy):
        """OTP: del_child, then start."""
        talk = booted(child("a"), child("t", restart="temporary"), strategy=strategy)
        talk.exit("a")

        assert talk.exit("t", SHUTDOWN) == ["disarm 2", "start a 2 as 3"]
        assert talk.states() == {"a": "starting"}

    def test_it_stays_away_when_the_restart_is_cancelled(self):
        """The failed start waits for its next attempt, and terminate_child cancels
        that.
        """
        talk = booted(child("a"), child("t", restart="temporary"), strategy="rest_for_one")
        talk.exit("a")
        talk.exit("t", SHUTDOWN)
        talk.exit("a")
        assert talk.states() == {"a": "restarting"}
        talk.hear(terminate("a"))

        assert talk.states() == {"a": "undefined"}
        assert talk.hear(start(child("t", restart="temporary"))) == ["start t 1 as 5"]

    def test_it_is_gone_while_the_group_waits(self):
        """With a back-off, too."""
        talk = booted(
            child("a", backoff=STEADY), child("t", restart="temporary"), strategy="one_for_all"
        )
        talk.exit("a")
        talk.exit("t", SHUTDOWN)

        assert talk.states() == {"a": "restarting"}

    def test_one_that_could_not_be_stopped_goes_when_it_has_ended(self):
        """It is never started again, whatever its option unstopped says."""
        held = child("t", restart="temporary", shutdown="brutal_kill", unstopped="hold")
        talk = booted(child("a"), held, strategy="one_for_all")
        talk.exit("a")
        talk.due("t")
        assert talk.states() == {"a": "starting", "t": "unstopped"}

        assert talk.up("a") == ["tell Progress app/a"]
        assert talk.exit("t", NORMAL) == []
        assert talk.states() == {"a": "running"}


class TestStartCalls:
    """A start call that a group restart overtakes is answered by what the group restart
    gives.
    """

    @pytest.mark.parametrize("newcomer", ["permanent", "temporary"])
    def test_start_child(self, newcomer):
        """It is stopped with its group, and started in its turn."""
        talk = booted(child("a"), strategy="one_for_all")
        talk.hear(start(child("n", restart=newcomer)))

        assert talk.exit("a") == ["tell ChildTerminated app/a crashed", "stop 2", "arm 2 at 5"]
        assert talk.exit("n", SHUTDOWN) == ["disarm 2", "start a 2 as 3"]
        assert talk.up("a") == ["tell Progress app/a", "start n 2 as 4"]
        assert talk.up("n") == ["tell Progress app/n", "answer r: n running"]

    def test_restart_child(self):
        """The same."""
        talk = booted(child("a"), child("b"), strategy="rest_for_one")
        talk.hear(terminate("b", ""))
        talk.exit("b", SHUTDOWN)
        talk.hear(restart("b"))
        talk.exit("a")
        talk.exit("b", SHUTDOWN)
        talk.up("a")

        assert talk.up("b") == ["tell Progress app/b", "answer r: b running"]

    @pytest.mark.parametrize("options", [{}, {"backoff": STEADY}], ids=["at once", "after a wait"])
    def test_the_first_new_start_of_the_group_fails(self, options):
        """The call waits with the group for the next attempt."""
        talk = booted(child("a", **options), strategy="one_for_all")
        talk.hear(start(child("n")))
        talk.exit("a")
        talk.exit("n", SHUTDOWN)
        if options:
            talk.due("a")
        assert not any("refuse" in line for line in talk.exit("a"))
        talk.due("a") if options else talk.retry()
        talk.up("a")

        assert talk.up("n")[-1] == "answer r: n running"

    def test_it_is_refused_when_it_fails_itself(self):
        """As ever: it is not tried again, and a new child is not kept; the rest of the
        group goes on.
        """
        talk = booted(child("a"), strategy="one_for_all")
        talk.hear(start(child("n")))
        talk.exit("a")
        talk.exit("n", SHUTDOWN)
        talk.up("a")

        assert talk.exit("n") == ["refuse r: StartError"]
        assert talk.states() == {"a": "running"}

    def test_it_may_decline(self):
        """Also at the moment in which its group waits for the end of another one."""
        talk = booted(child("a"), child("b"), child("c"), strategy="one_for_all")
        talk.hear(terminate("a", ""))
        talk.exit("a", SHUTDOWN)
        talk.hear(restart("a"))
        talk.exit("b")

        assert talk.exit("a", IGNORE) == ["answer r: a undefined"]

    def test_it_is_made_when_the_restart_is_cancelled(self):
        """The others stay down, but what was called for does not depend on the child
        that was terminated.
        """
        talk = booted(child("a"), child("b"), strategy="rest_for_one")
        talk.hear(start(child("n")))
        talk.exit("a")
        talk.exit("n", SHUTDOWN)
        talk.exit("b", SHUTDOWN)
        talk.exit("a")

        assert talk.hear(terminate("a")) == ["answer t: None", "start n 2 as 6"]
        assert talk.up("n") == ["tell Progress app/n", "answer r: n running"]
        assert talk.states() == {"a": "undefined", "b": "undefined", "n": "running"}

    def test_only_what_waits_is_made_then(self):
        """Found by the walks: a call that starts its child already, beside the group, needs no plan."""
        talk = booted(child("a"), strategy="rest_for_one")
        talk.hear(start(child("n")))
        talk.exit("a")
        talk.exit("n", SHUTDOWN)
        talk.exit("a")
        talk.hear(start(child("z"), "z"))
        talk.hear(terminate("a"))

        assert talk.exit("z", IGNORE) == ["answer z: z undefined"]
        assert talk.up("n") == ["tell Progress app/n", "answer r: n running"]

    def test_a_later_restart_does_not_forget_who_is_still_to_be_started(self):
        """Found by the walks: the plan of a child further down takes along what the one
        before has still to do.
        """
        talk = booted(child("a"), strategy="rest_for_one")
        for id in ("k", "n", "z"):
            talk.hear(start(child(id), id))
        talk.exit("a")
        for id in ("z", "n", "k"):
            talk.exit(id, SHUTDOWN)
        talk.exit("a")
        talk.hear(restart("z"))
        talk.up("z")
        assert talk.hear(terminate("a")) == ["answer t: None", "start k 2 as 8"]

        assert talk.exit("z") == ["tell ChildTerminated app/z crashed"]
        assert talk.up("k") == ["tell Progress app/k", "answer k: k running", "start n 2 as 9"]
        assert talk.up("n") == ["tell Progress app/n", "answer n: n running", "start z 3 as 10"]

    def test_what_waits_can_be_called_off(self):
        """By terminate_child, by delete_child, and by the end of the supervisor."""
        for call, said in (
            (terminate("n"), ["refuse r: StartError", "answer t: None"]),
            (messages.DeleteChild(reply="d", id="n"), ["refuse r: StartError", "answer d: None"]),
            (StopSupervisor(), ["disarm 3", "refuse r: StartError", "end shutdown"]),
        ):
            talk = booted(child("a", backoff=STEADY), strategy="one_for_all")
            talk.hear(start(child("n")))
            talk.exit("a")
            talk.exit("n", SHUTDOWN)
            assert talk.states() == {"a": "restarting", "n": "undefined"}

            assert talk.hear(call) == said

    def test_a_second_caller_starts_it_for_both(self):
        """restart_child of a child that waits for its group starts it alone, as it does
        for one that is down.
        """
        talk = booted(child("a", backoff=STEADY), strategy="one_for_all")
        talk.hear(start(child("n")))
        talk.exit("a")
        talk.exit("n", SHUTDOWN)

        assert talk.hear(restart("n", "s")) == ["start n 2 as 4"]
        assert talk.up("n") == ["tell Progress app/n", "answer r: n running", "answer s: n running"]

    def test_one_that_cannot_be_stopped_has_failed(self):
        """With unstopped="hold" it would be started a second time beside itself; a new
        child is not kept.
        """
        for option, then in (
            ("hold", ["refuse r: StartError", "start a 2 as 3"]),
            ("replace", ["start a 2 as 3"]),
        ):
            talk = booted(child("a"), strategy="one_for_all")
            talk.hear(start(child("n", shutdown="brutal_kill", unstopped=option)))
            talk.exit("a")

            assert talk.due("n") == ["disarm 2", "abandon 2: app/n 1", *then]

    def test_one_that_is_held_for_has_failed(self):
        """restart_child: the group brings it back when its thread has ended, and no
        caller waits for that.
        """
        talk = booted(
            child("a"), child("b", shutdown="brutal_kill", unstopped="hold"), strategy="one_for_all"
        )
        talk.hear(terminate("b", ""))
        talk.exit("b", KILLED)
        talk.hear(restart("b"))
        talk.exit("a")

        assert talk.due("b") == [
            "disarm 3",
            "abandon 3: app/b 2",
            "refuse r: StartError",
            "start a 2 as 4",
        ]


class TestRivals:
    def test_two_that_terminate_each_other_are_both_forgotten(self):
        """Each call is withdrawn when its caller has to stop; the stop that it has
        caused is for good all the same.
        """
        talk = booted(dynamic=True, max_children=2)
        for id in "ab":
            talk.hear(start(child(id)))
            talk.up(id)
        talk.hear(terminate("b", "x", inside="a"))

        assert talk.hear(terminate("a", "y", inside="b"))[-1] == "arm 1 at 5"
        talk.exit("a", SHUTDOWN)
        talk.exit("b", SHUTDOWN)
        assert talk.states() == {}


# Real trees


def test_a_start_call_outlives_a_group_restart(launch):
    """The caller is told that its child runs, and it does."""
    a, begun, go = Puppet(), threading.Semaphore(0), threading.Event()

    def slow(ctx):
        begun.release()
        if ctx.incarnation > 1 or not ctx.wait_stop(HANG):
            ctx.ready()
            ctx.wait_stop()

    app, answers = (
        launch(otpy.supervisor("app", strategy="one_for_all", children=[a.spec("a")])),
        [],
    )
    caller = threading.Thread(
        target=lambda: answers.append(app.start_child(otpy.thread(slow, ready=True)))
    )
    caller.start()
    assert begun.acquire(timeout=HANG)
    a.next().crash()
    caller.join(HANG)
    go.set()

    assert [(one.id, one.state, one.incarnation) for one in answers] == [
        ("slow", otpy.ChildState.RUNNING, 2)
    ]
    assert [one.state for one in app.which_children()] == [otpy.ChildState.RUNNING] * 2


def test_two_rivals_leave_their_ids_free(launch):
    """Children of a full dynamic supervisor that terminate each other."""
    app = launch(otpy.dynamic_supervisor("app", max_children=2))
    for _ in range(5):
        meet = threading.Barrier(2, timeout=HANG)

        def rival(ctx, other, meet=meet):
            meet.wait()
            try:
                ctx.supervisor.terminate_child(other, timeout=HANG)
            except otpy.Refusal:
                ctx.wait_stop(HANG)

        app.start_child(otpy.thread(rival, "b", id="a", restart="temporary"))
        app.start_child(otpy.thread(rival, "a", id="b", restart="temporary"))
        wait_until(lambda: not app.which_children(), "both are gone")


def test_the_last_significant_child_ends_while_another_one_is_terminated(launch):
    """The supervisor ends with it, and does not wait for ever."""
    leaves, goes_on = Puppet(), threading.Event()
    slow = Puppet(when_asked=lambda life: goes_on.wait(HANG))
    children = [
        leaves.spec("s", restart="transient", significant=True),
        slow.spec("t", restart="temporary", significant=True),
    ]
    app = launch(otpy.supervisor("app", auto_shutdown="all_significant", children=children))
    caller = threading.Thread(target=app.terminate_child, args=("t",))
    caller.start()
    assert slow.next().asked.wait(HANG)
    leaves.next().leave()
    wait_until(lambda: app._tree.directory["app"].machine.phase is Phase.ENDING, "it ends")
    goes_on.set()

    assert app.wait(HANG).detail == "auto_shutdown"
    caller.join(HANG)
