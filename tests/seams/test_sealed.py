"""Exceptions of callables stay sealed until a reader asks, and none of their code runs then."""

import ast
import datetime as dt
import decimal
import inspect
import json
import pathlib
import pickle
import signal
import sys
import threading
import uuid

import pytest

import otpy
from otpy import Fatal, Ignore, RemoteError, process, supervisor
from otpy.children.callable import (
    child,
    epitaph,
    keeper,
    parcel,
    protocol,
    reading,
)
from otpy.children.callable import process as processes
from otpy.core import machine
from otpy.exceptions import RemoteTraceback, is_sealed
from otpy.reports import CRASHED, ChildTerminated, ExitReason, LimitReached
from otpy.runtime import log, mailbox, telemetry, tree, waiting
from otpy.runtime import supervisor as supervisors
from tests import callable_stage
from tests.callable_stage import context, end_of, is_reaped  # noqa: F401 - fixtures
from tests.helpers import HANG, wait_until
from tests.seams import callables

stage, where = callable_stage.stage, callable_stage.where


def sealed_by(error, **facts):
    """Return the exception that the parent process reads, if a process has raised
    *error*.
    """
    common = {
        "word": epitaph.word_of(error),
        "packed": epitaph.pack(error, False),
        "name": epitaph.qualified_name(error),
    }
    facts = common | {"shown": repr(error), "message": str(error), "story": "its traceback"} | facts
    texts = (facts[name].encode() for name in ("word", "name", "shown", "message", "story"))
    return reading.raised_by(
        epitaph.join(*texts, facts["packed"]), allow_pickle=facts.get("allow_pickle", False)
    )


HONEST = [
    ValueError("bad luck"),
    KeyError("x"),
    FileNotFoundError(2, "No such file", "here", None, "there"),
    BlockingIOError(11, "again", 3),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ImportError("no such thing", name="thing", path="/x"),
    SyntaxError("bad", ("file.py", 1, 2, "text", 1, 3)),
    StopIteration(3),
    SystemExit(3),
    ExceptionGroup("two", [ValueError(1), ExceptionGroup("one", [KeyError(2)])]),
    callables.Plain(1, 2),
    callables.Burning("fire"),
    Ignore(),
    RuntimeError(None, True, 1 << 70, -1.5, float("inf"), "\ud800", b"\xff", 1j),
    RuntimeError([1, (2, {3}, frozenset({4})), {"a": {None: ()}}]),
    RuntimeError(
        dt.datetime(2020, 1, 2, 3, 4, 5, 6, dt.UTC),
        dt.date(2020, 1, 2),
        dt.time(1),
        dt.timedelta(-1, 2, 3),
    ),
    RuntimeError(
        decimal.Decimal("1.50"), uuid.UUID(int=5), pathlib.Path("a/b"), pathlib.PurePosixPath("c")
    ),
    RuntimeError(callables.Colour.RED, signal.SIGTERM, ValueError("inner")),
]


def facts_of(error):
    if not isinstance(error, BaseException):
        return error
    return (
        type(error),
        str(error),
        [facts_of(arg) for arg in error.args if not isinstance(arg, list)],
        {name: value for name, value in vars(error).items() if name != "__notes__"},
    )


@pytest.mark.parametrize("error", HONEST, ids=lambda error: type(error).__name__)
def test_an_exception_arrives_as_it_was_raised(error):
    """It has its class, arguments, attributes and notes; before it is opened, no text
    is made of it.
    """
    error.add_note("a note")
    sealed = sealed_by(error)
    assert is_sealed(sealed)
    opened = sealed.open()

    assert facts_of(opened) == facts_of(error)
    assert repr(opened) == repr(error)
    assert opened.__notes__ == ["a note"]
    assert isinstance(opened.__cause__, RemoteTraceback)
    assert str(opened.__cause__) == '\n"""\nits traceback"""'


def test_attributes_that_are_no_part_of_the_dict_arrive():
    """They are in slots, or in the builtin part of the object."""
    slotted = callables.Slotted()
    slotted.place = 3
    os_error = sealed_by(PermissionError(13, "no", "here")).open()

    assert sealed_by(slotted).open().place == 3
    assert (os_error.errno, os_error.filename) == (13, "here")
    assert sealed_by(SystemExit(4)).open().code == 4
    assert sealed_by(ImportError("x", name="n")).open().name == "n"


def test_no_code_of_its_class_runs_when_it_is_opened():
    """No constructor runs, no ``__setstate__``, no property, and no code about its
    pickling.
    """
    error = callables.Watchful("one", 2)
    packed = epitaph.pack(error, False)
    del callables.CALLS[:]
    opened = sealed_by(ValueError(), packed=packed).open()

    assert callables.CALLS == []
    assert type(opened) is callables.Watchful
    assert opened.args == ("one", 2)
    assert vars(opened) == {"watched": 1}


HOSTILE = {
    # what a child may send for an exception: nothing of it may have an effect
    "a function": ["exception", "os", "system", ["builtins.tuple", "touch hit"], ["builtins.dict"]],
    "eval": ["exception", "builtins", "eval", ["builtins.tuple", "1"], ["builtins.dict"]],
    "no exception": [
        "exception",
        "subprocess",
        "Popen",
        ["builtins.tuple", "true"],
        ["builtins.dict"],
    ],
    "not imported": [
        "exception",
        "turtle",
        "TurtleGraphicsError",
        ["builtins.tuple"],
        ["builtins.dict"],
    ],
    "a method": ["exception", "os", "path.join", ["builtins.tuple"], ["builtins.dict"]],
    "its class": [
        "exception",
        "builtins",
        "ValueError",
        ["builtins.tuple"],
        ["builtins.dict", "__class__", "KeyError"],
    ],
    "its dict": [
        "exception",
        "builtins",
        "ValueError",
        ["builtins.tuple"],
        ["builtins.dict", "__dict__", ["builtins.dict"]],
    ],
    "names": ["exception", 1, None, ["builtins.tuple"], ["builtins.dict"]],
    "no tuple": ["exception", "builtins", "ValueError", 3, ["builtins.dict"]],
    "an unknown word": ["builtins.range", 1],
    "no word": [],
    "a word that is a list": [["exception"]],
    "odd dict": [
        "exception",
        "builtins",
        "ValueError",
        ["builtins.tuple", ["builtins.dict", 1]],
        ["builtins.dict"],
    ],
    "no text": [
        "exception",
        "builtins",
        "ValueError",
        ["builtins.tuple", ["uuid.UUID", 1]],
        ["builtins.dict"],
    ],
    "an enum's method": ["enum", "signal", "Signals", "__class__"],
    "no enum": ["enum", "os", "system", "x"],
    "a value": ["builtins.list", 1],
    "a number": 3,
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_exception_of_the_parent_process_is_reported_as_text(
    said, tmp_path, monkeypatch
):
    """Nothing is called, and no module imported, because of a name that a child has
    sent.
    """
    monkeypatch.chdir(tmp_path)
    opened = sealed_by(ValueError("bad luck"), packed=json.dumps(said).encode()).open()

    assert type(opened) is RemoteError
    assert (opened.type_name, opened.message, opened.traceback) == (
        "ValueError",
        "bad luck",
        "its traceback",
    )
    assert not (tmp_path / "hit").exists()
    assert "turtle" not in sys.modules


A_HASHED = ["exception", "tests.seams.callables", "Hashed", ["builtins.tuple"], ["builtins.dict"]]
A_NUMBER = ["enum", "tests.seams.callables", "Number", "ONE"]

CALLING = {
    # what Python cannot make without a call of a user's class
    "a set": ["builtins.set", A_HASHED, A_HASHED],
    "a frozenset": ["builtins.frozenset", A_HASHED],
    "a dict": ["builtins.dict", A_HASHED, 1],
    "a key in a tuple": ["builtins.dict", ["builtins.tuple", 1, ["builtins.tuple", A_HASHED]], 1],
    "a complex": ["builtins.complex", A_NUMBER, A_NUMBER],
    "a timedelta": ["datetime.timedelta", A_NUMBER, A_NUMBER, A_NUMBER],
}


@pytest.mark.parametrize("value", CALLING.values(), ids=CALLING)
def test_nothing_is_hashed_or_converted_by_its_own_code(value):
    """A key, a member of a set, and a part of a number are of Python's own classes."""
    del callables.CALLS[:]
    said = ["exception", "builtins", "ValueError", ["builtins.tuple", value], ["builtins.dict"]]
    opened = sealed_by(ValueError("bad luck"), packed=json.dumps(said).encode()).open()

    assert callables.CALLS == []
    assert type(opened) is RemoteError


def test_plain_keys_arrive():
    """Members of enums are among them, and values that the standard library hashes in
    Python.
    """
    keys = [
        1,
        "a",
        None,
        b"b",
        (1, ("c",)),
        uuid.UUID(int=3),
        pathlib.Path("p"),
        decimal.Decimal("1.5"),
    ]
    keys += [
        dt.date(2026, 1, 1),
        callables.Colour.RED,
        signal.SIGINT,
        frozenset({1, callables.Colour.RED}),
    ]
    error = ValueError(dict.fromkeys(keys, 1), set(keys))

    assert sealed_by(error).open().args == error.args


@pytest.mark.parametrize(
    "packed", [b"{", b"\xff", b"[" * 100_000, b'"' + b"x" * protocol.LARGEST + b'"'], ids=len
)
def test_what_cannot_be_read_is_reported_as_text(packed):
    """Broken JSON, deep nesting and too much of it are no crash of the reader."""
    assert type(sealed_by(ValueError("bad luck"), packed=packed).open()) is RemoteError


def test_what_is_not_plain_is_reported_as_text():
    """So are too many values, and an exception that refers to itself."""
    error = ValueError()
    error.args = (error,)
    for bad in (
        ValueError(threading.Lock()),
        ValueError(object),
        ValueError([0] * protocol.MOST),
        error,
    ):
        assert epitaph.pack(bad, False) == b""
        assert type(sealed_by(ValueError("x"), packed=b"").open()) is RemoteError


def test_a_pickle_is_not_opened_unless_that_is_allowed():
    """Without ``allow_pickle`` no bytes are unpickled."""
    sealed = sealed_by(ValueError("x"), packed=pickle.dumps(callables.Made()))
    del callables.CALLS[:]

    assert type(sealed.open()) is RemoteError
    assert callables.CALLS == []


@pytest.mark.parametrize(
    ("word", "error"), [("", Fatal("fire")), ("Fatal", ValueError("x")), ("Ignore", Fatal("fire"))]
)
def test_an_exception_means_what_its_word_says(word, error):
    """The supervisor has decided by the word, so a reader finds an exception that
    agrees with it.
    """
    opened = sealed_by(error, word=word).open()

    assert type(opened) is {"": RemoteError, "Fatal": Fatal, "Ignore": Ignore}[word]


def test_an_exception_is_opened_once():
    """Readers on several threads get the same object; two reasons that share it are
    equal while it is sealed.
    """
    sealed = sealed_by(callables.Plain(1, 2))
    reason, other = ExitReason(CRASHED, sealed), ExitReason(CRASHED, sealed)
    assert reason == other
    assert reason != ExitReason(CRASHED, sealed_by(callables.Plain(1, 2)))
    assert hash(reason) == hash(other)
    found = []
    readers = [threading.Thread(target=lambda: found.append(reason.exception)) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(HANG)

    assert len(found) == 8
    assert {id(one) for one in found} == {id(other.exception)}
    assert reason == other


def test_a_reason_can_be_pickled_and_stays_sealed(monkeypatch):
    """To pickle it opens nothing."""
    monkeypatch.setattr(
        reading.SealedException, "_rebuilt", lambda sealed: pytest.fail("it was opened")
    )
    reason = ExitReason(CRASHED, sealed_by(ValueError("bad luck")), "detail")
    copy = pickle.loads(pickle.dumps(reason))
    assert is_sealed(copy.raised)
    assert (str(copy), copy.traceback, copy.detail) == (
        "crashed: ValueError('bad luck')",
        "its traceback",
        "detail",
    )
    monkeypatch.undo()

    assert repr(copy.exception) == "ValueError('bad luck')"


@pytest.fixture
def opened_on(monkeypatch):
    """Return the names of the threads on which exceptions were opened."""
    names, rebuilt = [], reading.SealedException._rebuilt

    def note(sealed):
        names.append(threading.current_thread().name)
        return rebuilt(sealed)

    monkeypatch.setattr(reading.SealedException, "_rebuilt", note)
    return names


def test_neither_a_supervisor_nor_the_log_opens_an_exception(launch, recorder, opened_on, capfd):
    """A crash, the restart, an escalation through two levels, and the log use the
    texts.
    """
    inner = supervisor(
        "inner", intensity=1, children=[process(callables.raise_it, "Burning", "fire")]
    )
    launch(supervisor("app", intensity=0, children=[inner]), log=True)
    limit = recorder.wait_for(LimitReached, "app")
    said = []

    def is_logged():
        said.append(capfd.readouterr().out)
        return (
            "path=app" in "".join(said).partition("limit_reached")[2].partition("limit_reached")[2]
        )

    wait_until(is_logged, "the log")

    assert opened_on == []
    assert "Burning('fire')" in repr(limit)
    assert recorder.wait_for(ChildTerminated).reason.is_fatal
    assert type(recorder.wait_for(ChildTerminated).reason.exception) is callables.Burning
    assert opened_on == [threading.current_thread().name]


@pytest.mark.parametrize(
    "module",
    [machine, supervisors, tree, mailbox, waiting, log, telemetry, child, keeper, processes],
    ids=lambda one: one.__name__,
)
def test_what_a_supervisor_runs_does_not_ask_for_the_exception_of_a_reason(module):
    """It uses ``raised``: ``exception`` would open what a process has sent."""
    asks = [
        one.lineno
        for one in ast.walk(ast.parse(inspect.getsource(module)))
        if getattr(one, "attr", "") == "exception"
    ]

    assert asks == []


def test_the_cause_of_a_failed_start_is_opened_by_its_caller(launch, opened_on):
    """That holds for ``start`` and ``start_child``; a report shows the texts before
    that.
    """
    bad = process(callables.raise_it, "Plain", 1, 2, ready=True)
    with pytest.raises(otpy.StartError) as failure:
        otpy.start(supervisor("app", children=[supervisor("inner", children=[bad])]), log=False)
    app = launch(supervisor("app"))
    with pytest.raises(otpy.StartError) as refusal:
        app.start_child(bad)

    assert opened_on == [threading.current_thread().name] * 2
    for error in (failure.value, refusal.value):
        assert type(error.__cause__) is callables.Plain
        assert error.__cause__.two == 2
    assert failure.value.path == "app/inner/raise_it"


def test_a_failed_start_in_a_report_has_the_texts_as_its_cause():
    """A report must not open the exception."""
    reason = ExitReason(CRASHED, sealed_by(callables.Plain(1, 2)))
    error = otpy.reports.start_error("app/x", reason)

    assert type(error.__cause__) is RemoteError
    assert "1 and 2" in str(error.__cause__)


def test_the_next_incarnation_gets_the_last_exit_sealed(stage):
    """It opens the exception by the same rules."""
    reason = ExitReason(CRASHED, sealed_by(ValueError("bad luck")))
    last = pickle.loads(parcel.pickled_exit(reason))

    assert is_sealed(last.raised)
    assert (
        repr(context(last_exit=pickle.dumps(reason)).last_exit.exception)
        == "ValueError('bad luck')"
    )


def test_what_does_not_travel_to_the_next_incarnation_is_reported_as_text():
    """A RemoteError stands in for it."""
    error = ValueError(threading.Lock())
    last = pickle.loads(parcel.pickled_exit(ExitReason(CRASHED, error, threading.Lock())))

    assert type(last.exception) is RemoteError
    assert last.exception.type_name == "ValueError"
    assert "lock object" in last.exception.message
    assert "lock object" in last.detail


def test_allow_pickle_unpickles_on_the_thread_of_the_reader(stage):
    """No other thread runs the code of the exception."""
    reason = end_of(stage(process(callables.raise_it, "Made", allow_pickle=True)))
    del callables.CALLS[:]
    assert "Made" in f"{reason} {reason.traceback}"
    assert callables.CALLS == []

    assert repr(reason.exception) == "ValueError('made')"
    [call] = callables.CALLS
    assert call == ("make", threading.current_thread().name)


def test_an_exception_cannot_end_the_parent_process():
    """Its pickling would, where it is unpickled; here it is not."""
    opened = sealed_by(callables.Deadly("bad luck")).open()

    assert (type(opened), opened.args) == (callables.Deadly, ("bad luck",))
