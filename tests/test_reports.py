"""Exit reasons, refusals and errors as values."""

import copy
import json
import pickle

import pytest

from otpy import ExitKind, ExitReason, NotFound, SpecError, StartError, TreeFailed
from otpy.cli.run import plain
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
        (
            ExitReason(ExitKind.KILLED, detail="it could not be stopped"),
            "killed: it could not be stopped",
        ),
        (ExitReason(ExitKind.CRASHED, ValueError("x")), "crashed: ValueError('x')"),
    ],
)
def test_reasons_read_like_words(reason, text):
    """Kind, and what is known."""
    assert str(reason) == text


def test_escalations_read_like_a_sentence():
    """Who, and because of whom."""
    escalation = Escalation(
        path="app",
        child="app/a",
        reason=ExitReason(ExitKind.NORMAL),
        restarts=1,
        intensity=0,
        period=5.0,
        parent=None,
    )

    assert str(escalation) == "app gave up: app/a spent the last restart (normal)"


def test_the_messages_of_errors():
    """Each names its path."""
    assert str(NotFound("app/a")) == "app/a: there is no such child"
    assert str(NotFound("app/a", "no luck")) == "app/a: no luck"
    assert str(StartError("app/a", "why")) == "app/a did not start: why"
    assert (
        str(TreeFailed("app", ExitReason(ExitKind.LIMIT_REACHED), None))
        == "app gave up: limit_reached"
    )


@pytest.mark.parametrize(
    "error", [SpecError("a", "id", 3, "a str"), NotFound("app/a"), StartError("app/a", "why")]
)
def test_errors_can_be_pickled(error):
    """They travel between processes."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def escalation_through(levels: int) -> Escalation:
    reason = ExitReason(ExitKind.CRASHED, detail="no disk")
    for level in reversed(range(levels)):
        path = "/".join(["s"] * (level + 1))
        one = Escalation(
            path=path,
            child=f"{path}/s",
            reason=reason,
            restarts=1,
            intensity=0,
            period=5.0,
            parent=path[:-2] or None,
        )
        reason = ExitReason(ExitKind.LIMIT_REACHED, detail=one)
    return one


def test_an_escalation_through_many_levels_names_both_ends():
    """What is between them is in the chain."""
    assert str(escalation_through(4)) == (
        "s gave up: s/s spent the last restart "
        "(limit_reached: 2 more, and at first s/s/s/s gave up: s/s/s/s/s spent the last restart (crashed: no disk))"
    )


@pytest.mark.parametrize("written", [repr, str, pickle.dumps, lambda one: json.dumps(plain(one))])
def test_an_escalation_is_written_in_linear_size(written):
    """Each level is written once; only its path is longer than that of the one above."""
    few, many = (len(written(escalation_through(levels))) for levels in (45, 90))

    assert many < 5 * few
    assert many < 200_000


def test_an_escalation_through_many_levels_is_compared_and_copied_at_once():
    """The chain is read, not kept: no level is in there twice."""
    one = escalation_through(90)

    assert one == escalation_through(90) == pickle.loads(pickle.dumps(one)) == copy.deepcopy(one)
    assert hash(one) == hash(escalation_through(90))
    assert [below.path.count("/") for below in one.chain] == list(reversed(range(1, 90)))
