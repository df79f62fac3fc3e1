"""The life of a child as data: its moves, what belongs to a state, and the diagram of them."""

import itertools
import pathlib
import re

import pytest

from otpy.core import slots
from otpy.core.messages import StopSupervisor
from otpy.core.plan import Plan
from otpy.core.restarts import Delays
from otpy.core.slots import (
    LATE,
    MOVES,
    NUMBERED,
    SHOWN,
    UNDEFINED,
    Held,
    Slot,
    Starting,
    State,
    Stopping,
    Waiting,
)
from otpy.exceptions import InternalError
from otpy.reports import Cause, ExitKind, ExitReason
from tests import pages
from tests.machine_talk import NORMAL, Talk, booted, child
from tests.walks import World

DESIGN = pages.find("design.md")

CRASHED = ExitReason(ExitKind.CRASHED)


def slot():
    return Slot("a", "app/a", child("a"), Delays(None, None), None)


@pytest.mark.parametrize("move", sorted(itertools.product(State, repeat=2), key=str))
def test_a_slot_makes_the_moves_of_the_table_and_no_others(move):
    """MOVES is asked at each change of a state."""
    one = slot()
    one.state, after = move
    if move in MOVES:
        one.move(after)
        assert one.state is after
    else:
        with pytest.raises(InternalError, match="is no move"):
            one.move(after)
        assert one.state is move[0]


def test_what_belongs_to_a_state_goes_with_it():
    """No field of one state is left over in the next."""
    one = slot()
    one.move(slots.STARTING, starting=Starting(Cause.INIT))
    one.move(slots.STOPPING, stopping=Stopping(LATE, CRASHED))
    assert (one.starting, one.stopping.why) == (None, LATE)
    one.move(slots.UNSTOPPED, held=Held(LATE, CRASHED))
    assert (one.stopping, one.held.has_failed, one.holds_up) == (None, True, True)
    one.move(UNDEFINED)
    one.move(slots.RESTARTING, waiting=Waiting(CRASHED, 3.0))

    assert (one.held, one.due, one.holds_up) == (None, 3.0, True)


def test_every_state_is_shown_and_can_be_reached_and_left():
    """No state is a dead end, and the world knows a word for each."""
    assert set(SHOWN) == set(State)
    assert {before for before, _ in MOVES} == {after for _, after in MOVES} == set(State)
    assert set(State) >= NUMBERED


def test_every_move_is_made_by_a_life_of_the_walks(monkeypatch):
    """The table has no move that is never made: it tells what happens, not what might."""
    made, real = set(), Slot.move

    def move(self, state, **more):
        made.add((self.state, state))
        real(self, state, **more)

    monkeypatch.setattr(Slot, "move", move)
    for seed in range(300):
        if made == MOVES:
            break
        World(seed, is_dense=seed % 2 == 0).live()

    assert made == MOVES


def test_the_state_is_set_by_the_setter_only():
    """``slot.state = …`` is written in one place."""
    core = pathlib.Path(slots.__file__).parent
    texts = {path.name: path.read_text() for path in core.glob("*.py")}

    assert [name for name, text in texts.items() if re.search(r"\.state(,.*)? = ", text)] == [
        "slots.py"
    ]


def test_the_diagram_of_the_design_page_is_drawn_from_the_table():
    """``python -c 'from otpy.core.slots import diagram; print(diagram())'`` draws it."""
    assert f"```mermaid\n{slots.diagram()}\n```" in DESIGN.read_text()


def test_a_child_that_died_while_a_sibling_boots_is_judged_when_all_are_up():
    """Until then it is in a state of its own, shows as undefined, and its number is of the past."""
    talk = Talk(child("a"), child("b"))
    talk.begin()
    talk.up("a")
    assert talk.exit("a") == []
    assert talk.machine.slots["a"].state is slots.ENDED
    assert talk.exit("a", NORMAL) == []

    assert talk.up("b") == [
        "tell Progress app/b",
        "up",
        "tell ChildTerminated app/a crashed",
        "start a 2 as 3",
    ]


def test_what_died_while_a_sibling_boots_is_absorbed_when_the_boot_fails():
    """Then nothing is restarted, and its end counts as the stop that was to come."""
    talk = Talk(child("a"), child("b"))
    talk.begin()
    talk.up("a")
    talk.exit("a")

    assert talk.exit("b") == [
        "tell StartFailed app/b crashed",
        "tell ShutdownError app/a crashed",
        "end shutdown a",
    ]


def test_a_new_rung_of_the_ladder_is_one_entry(monkeypatch):
    """The machine climbs from rung to rung, whatever they are; each has a limit of its own."""
    again = slots.Rung("_ask", lambda spec, grace: 2.0)
    monkeypatch.setattr(slots, "LADDER", (slots.ASK, again, slots.INTERRUPT, slots.ABANDON))
    talk = booted(child("a", shutdown=5.0))
    talk.hear(StopSupervisor())

    assert talk.due("a") == ["stop 1", "arm 1 at 5"]
    assert talk.due("a") == ["kill 1", "arm 1 at 0.5"]
    assert talk.due("a")[:2] == ["disarm 1", "abandon 1: app/a 1"]


# Plans


def test_two_plans_are_merged_in_the_order_of_the_children():
    """What the old one has still to do with others is done in its place: stops in reverse, starts in order."""
    old = Plan.of("db", "bd", bystanders="b")
    old.awaiting = {"a", "c"}
    new = Plan.of("c", "ac")
    new.take_along(old, frozenset("ac"), "abcd")

    assert (list(new.stops), list(new.starts)) == (list("dcb"), list("abcd"))
    assert (new.awaiting, new.bystanders) == (set(), ("b",))


def test_what_an_old_plan_had_to_do_with_members_is_overtaken():
    """The new plan says what becomes of its own members."""
    old = Plan.of("cb", "bc")
    new = Plan.of("b", "b")
    new.take_along(old, frozenset("bc"), "abc")

    assert (list(new.stops), list(new.starts)) == (["b"], ["b"])
