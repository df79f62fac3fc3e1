"""What our values have in common."""

import copy
import pickle

import attrs
import pytest

from otpy import ChildState, ExitKind, ExitReason, Restart, reports, specs, thread
from otpy.core.messages import Arm, CountChildren, Disarm, Handover, Start, Stop
from otpy.reports import Cause, Progress

MODULES = (reports, specs)


def child(ctx):
    pass


def test_values_are_equal_by_class_and_fields():
    """Two orders of one shape are not the same order."""
    assert Arm(1, at=2.0) == Arm(1, at=2.0)
    assert Arm(1, at=2.0) != Arm(1, at=3.0)
    assert Stop(1) != Disarm(1)
    assert Stop(1) != 1
    assert len({Arm(1, at=2.0), Arm(1, at=2.0), Arm(2, at=2.0)}) == 2


def test_a_field_that_does_not_count():
    """What is handed over is the same object for all incarnations, and means nothing to the machine."""
    spec = thread(child)

    assert Start(1, spec, 1, None, Handover("a")) == Start(1, spec, 1, None, Handover("b"))


def test_calls_are_equal_to_themselves_only():
    """Two callers may ask for the same."""
    first, second = CountChildren(reply=None), CountChildren(reply=None)

    assert first != second
    assert first in [second, first]
    assert len({first, second}) == 2


def test_they_print_their_fields():
    """So that a story can be read."""
    assert repr(Arm(1, at=2.0)) == "Arm(ref=1, at=2.0)"
    assert repr(Progress(path="a", cause=Cause.INIT)).startswith(
        "Progress(path='a', incarnation=0, time=0.0, "
    )


@pytest.mark.parametrize("word", [*ExitKind, *ChildState, *Restart])
def test_words_are_single_objects(word):
    """They hash by identity, so whatever brings them back must bring back the same one."""
    assert pickle.loads(pickle.dumps(word)) is word
    assert copy.deepcopy(word) is word
    assert type(word)(word.value) is word
    assert {word: 1}[word] == 1


def test_reports_travel():
    """A handler may send them to another process."""
    report = Progress(
        path="app/a", incarnation=3, cause=Cause.RESTART, reason=ExitReason(ExitKind.NORMAL)
    )

    assert pickle.loads(pickle.dumps(report)) == report
    assert copy.deepcopy(report) == report
    assert hash(report) == hash(copy.copy(report))


@pytest.mark.parametrize(
    "kind",
    [
        one
        for module in MODULES
        for one in vars(module).values()
        if isinstance(one, type) and attrs.has(one)
    ],
)
def test_all_that_people_see_prints_and_compares(kind):
    """No class has lost its repr or its eq on the way."""
    assert kind.__repr__ is not object.__repr__
    assert kind.__eq__ is not object.__eq__
