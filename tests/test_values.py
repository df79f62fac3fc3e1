"""What our values have in common."""

import copy
import pickle
import re
from pathlib import Path

import attrs
import pytest

import otpy
from otpy import ChildState, ExitKind, ExitReason, Restart, reports, specs, thread
from otpy.core.messages import Arm, CountChildren, Disarm, Handover, Start, Stop
from otpy.reports import Cause, Progress
from otpy.values import Value, message, report, running, value

PACKAGE = Path(otpy.__file__).parent

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


def shortened(text):
    return text[:3]


@value
class Data(Value):
    """Frozen data whose fields use what ``attrs.field`` offers."""

    name: str = attrs.field(repr=shortened)
    hidden: int = attrs.field(default=0, repr=False)
    note: str = attrs.field(default="", eq=False)
    length: str = attrs.field(default="", eq=len, repr=False)


@report
class News(Value):
    """Frozen data with fields by name."""

    first: int = 0
    second: int


@running
class Engine:
    """An object with identity."""

    speed: int = 0


@message
class Order(Value):
    """A message."""

    ref: int


@pytest.mark.parametrize(("frozen", "field"), [(Data("a"), "name"), (News(second=1), "second")])
def test_a_value_and_a_report_are_frozen(frozen, field):
    """No field of a value or of a report can be set."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(frozen, field, "b")


def test_a_report_is_made_with_names_only():
    """So its fields can be sorted for the reader, and one with a default may stand first."""
    assert repr(News(second=2)) == "News(first=0, second=2)"
    with pytest.raises(TypeError):
        News(1, 2)


def test_a_value_obeys_what_its_fields_say():
    """``repr`` and ``eq`` of a field mean for a ``Value`` what they mean to attrs."""
    assert repr(Data("abcdef", hidden=1, note="n")) == "Data(name=abc, note='n')"
    assert Data("a", note="x", length="ab") == Data("a", note="y", length="cd")
    assert Data("a", length="ab") != Data("a", length="abc")
    assert hash(Data("a", note="x", length="ab")) == hash(Data("a", note="y", length="cd"))


def test_a_running_object_is_equal_to_itself_only():
    """Two engines of one speed are two engines, and an engine may change its speed."""
    one, other = Engine(speed=1), Engine(speed=1)
    one.speed = 2
    other.speed = 2

    assert one != other
    assert len({one, other}) == 2


def test_decorators_pass_options_on():
    """``@running(frozen=True)`` is an object with identity that does not change."""

    @running(frozen=True)
    class Fixed:
        size: int

    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Fixed(1).size = 2
    assert Fixed(1) != Fixed(1)


def test_a_message_compares_as_a_value():
    """At run time a message is not frozen, which makes it cheap; still it is a value."""
    assert Order(1) == Order(1)
    assert hash(Order(1)) == hash(Order(1))
    assert repr(Order(1)) == "Order(ref=1)"


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_classes_are_made_by_the_four_decorators(file):
    """The law of values.py: no class is made by another spelling of attrs, or as a dataclass."""
    spelling = r"^\s*@(attrs?\.|define|frozen|(dataclasses\.)?dataclass\b)"

    assert re.findall(spelling, file.read_text(), re.MULTILINE) == []
