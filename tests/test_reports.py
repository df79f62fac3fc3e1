"""Exit reasons, refusals and errors as values."""

import pickle

import pytest

from otpy import ExitKind, ExitReason, NotFound, SpecError, StartError, TreeFailed
from otpy.exceptions import printable, show
from otpy.reports import Escalation


def reason_of(error):
    try:
        raise error
    except BaseException as caught:
        return ExitReason(ExitKind.CRASHED, caught)


def test_the_traceback_has_the_raising_line():
    """Formatted when somebody reads it, and kept."""
    reason = reason_of(ValueError("boom"))

    assert "raise error" in reason.traceback
    assert reason.traceback.endswith("ValueError: boom\n")
    assert reason.traceback is reason.traceback
    assert ExitReason(ExitKind.NORMAL).traceback == ""


def test_an_exception_whose_str_raises():
    """It can be shown all the same."""

    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError("not even this")

        __repr__ = __str__

    reason = reason_of(Nasty())

    assert "Nasty" in reason.traceback
    assert str(reason).startswith("crashed: <Nasty instance at 0x")


def test_a_value_whose_repr_raises_anything():
    """It can be shown, on whatever thread."""

    class Exits:
        def __repr__(self):
            raise SystemExit

    assert show(Exits()) == "<Exits without a repr>"


def test_an_exception_that_cannot_be_formatted():
    """Not even that hurts."""

    class Worse(Exception):
        @property
        def __cause__(self):
            raise RuntimeError("no cause")

    assert "could not be formatted" in reason_of(Worse()).traceback


def test_lone_surrogates_are_escaped():
    """A file name from the file system may have them; no stream takes them."""
    reason = reason_of(ValueError("\ud800"))

    reason.traceback.encode("utf-8")
    assert "\\ud800" in reason.traceback
    assert printable("\udcff") == "\\udcff"


def test_reasons_compare_by_the_same_exception_object():
    """Two crashes are two crashes."""
    error = ValueError()

    assert ExitReason(ExitKind.CRASHED, error) == ExitReason(ExitKind.CRASHED, error)
    assert ExitReason(ExitKind.CRASHED, error) != ExitReason(ExitKind.CRASHED, ValueError())


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (ExitReason(ExitKind.NORMAL), "normal"),
        (ExitReason(ExitKind.KILLED, detail="it could not be stopped"), "killed: it could not be stopped"),
        (ExitReason(ExitKind.CRASHED, ValueError("x")), "crashed: ValueError('x')"),
    ],
)
def test_reasons_read_like_words(reason, text):
    """Kind, and what is known."""
    assert str(reason) == text


def test_escalations_read_like_a_sentence():
    """Who, and because of whom."""
    escalation = Escalation(
        path="app", child="app/a", reason=ExitReason(ExitKind.NORMAL), restarts=1, intensity=0, period=5.0, parent=None
    )

    assert str(escalation) == "app gave up: app/a spent the last restart (normal)"


def test_the_messages_of_errors():
    """Each names its path."""
    assert str(NotFound("app/a")) == "app/a: there is no such child"
    assert str(NotFound("app/a", "no luck")) == "app/a: no luck"
    assert str(StartError("app/a", "why")) == "app/a did not start: why"
    assert str(TreeFailed("app", ExitReason(ExitKind.LIMIT_REACHED), None)) == "app gave up: limit_reached"


@pytest.mark.parametrize("error", [SpecError("a", "id", 3, "a str"), NotFound("app/a"), StartError("app/a", "why")])
def test_errors_can_be_pickled(error):
    """They travel between processes."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
