"""The machine, as dialogues: calls, and what each is answered in each state."""

from __future__ import annotations

from otpy.core import messages
from otpy.core.messages import StopSupervisor
from otpy.reports import Counts
from tests.machine_talk import NORMAL, SHUTDOWN, Talk, booted, child


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
