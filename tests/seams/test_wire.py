"""What a callable in a process of its own says is data: bounded, never executed; an
interrupt loses nothing of it.
"""

import ast
import datetime as dt
import decimal
import functools
import inspect
import json
import linecache
import os
import pathlib
import pickle
import random
import signal
import socket
import sys
import threading
import uuid

import pytest

import otpy
from otpy import ExitKind, Fatal, Ignore, ProtocolError, RemoteError, SpecError, process, supervisor
from otpy.children.callable import (
    child,
    epitaph,
    far_side,
    keeper,
    parcel,
    protocol,
    reading,
    wires,
)
from otpy.children.callable import process as processes
from otpy.core import machine
from otpy.core.messages import ChildExited
from otpy.exceptions import RemoteTraceback, is_sealed
from otpy.reports import CRASHED, ChildTerminated, ExitReason, LimitReached
from otpy.runtime import log, mailbox, posix, telemetry, tree, waiting
from otpy.runtime import supervisor as supervisors
from tests import callees
from tests.helpers import HANG, wait_until
from tests.seams import callables
from tests.test_callee import context, end_of, is_reaped, stage, where  # noqa: F401 - fixtures

LIMIT = 1 << 20


def heard(*pieces, limit=LIMIT):
    """Return the messages in what comes in these *pieces*."""
    messages = reading.Messages(limit)
    return [message for piece in pieces for message in messages.cut(piece)]


def told(error, **facts):
    """Return what a process that has raised *error* sends of it, as the program reads
    it.
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


# Messages are measured before they are kept


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (
            protocol.HEAD.pack(protocol.STATE, 1 << 60),
            rf"of {1 << 60} bytes \(max_message_size: {LIMIT}\)",
        ),
        (protocol.HEAD.pack(protocol.EXIT, LIMIT + 1), "max_message_size"),
        (protocol.HEAD.pack(protocol.BEAT, 9), "which has 8"),
        (protocol.HEAD.pack(protocol.UP, 1), "which has 0"),
        (protocol.HEAD.pack(b"?", 0), r"no message begins with b'\?'"),
    ],
)
def test_the_head_of_a_message_is_enough_to_refuse_it(head, said):
    """Nothing is read, or kept, of a message that is too large or none."""
    with pytest.raises(ProtocolError, match=said):
        heard(head)


def test_a_message_as_large_as_the_limit_is_heard():
    content = bytes(LIMIT)

    assert heard(protocol.HEAD.pack(protocol.STATE, LIMIT), content) == [(protocol.STATE, content)]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_check_in_that_allows_no_number_of_seconds_is_refused(seconds):
    """It would spoil the order of the supervisor's deadlines."""
    with pytest.raises(ProtocolError, match="allows"):
        reading.allowed(protocol.ALLOWED.pack(seconds))


def test_rubbish_is_a_protocol_error_or_nothing_and_is_never_opened():
    """Whatever comes, and wherever it is cut: no other exception, and at most an
    exception that is still sealed.
    """
    chance = random.Random(1)
    for _ in range(2000):
        content = chance.randbytes(chance.randrange(200))
        if chance.random() < 0.5:
            content = epitaph.join(*(chance.randbytes(chance.randrange(9)) for _ in range(6)))
        try:
            for kind, part in heard(
                *(content[at : at + 7] for at in range(0, len(content), 7)), limit=100
            ):
                assert len(part) <= 100, kind
            sealed = reading.raised_by(content, allow_pickle=False)
        except ProtocolError:
            continue
        assert sealed is None or type(sealed.open()) in (RemoteError, *otpy.exceptions.CONTROL)


def test_a_callable_that_sends_something_too_large_is_killed_and_the_reason_is_told(stage):  # noqa: F811
    """A header of 4 GiB alone is enough."""
    reason = end_of(stage(process(callables.send_raw, protocol.STATE, (1 << 32) - 1)))

    assert reason.kind is ExitKind.CRASHED
    assert type(reason.exception) is ProtocolError
    assert "a message of 4294967295 bytes (max_message_size: 67108864)" in str(reason)


def test_a_process_that_holds_the_wire_and_sends_for_ever_holds_up_no_end(stage):  # noqa: F811
    """The end of the callable is told, and what goes on sending is killed."""
    reason = end_of(
        stage(process(callables.leave_a_flood, protocol.BEAT, protocol.ALLOWED.pack(0.0)))
    )

    assert reason.kind is ExitKind.CRASHED
    assert str(reason) == "crashed: SystemExit(3)"


def test_a_state_that_is_too_large_is_refused_where_it_is_saved():
    """The error names its size and the limit, and what was saved before stays."""
    ctx = context(max_message_size=50_000)
    ctx.check_in("before")
    with pytest.raises(
        ValueError, match=r"100009 bytes, pickled: expected at most 50000 \(max_message_size\)"
    ):
        ctx.check_in("x" * 100_000)

    assert ctx.state == "before"
    assert len(ctx._wire.frames) == 1


def test_an_exception_that_is_too_large_is_told_in_short():
    """Its name always, and of its text and its traceback what there is room for."""
    for limit in (protocol.LEAST, 20_000):
        content = epitaph.epitaph_of(ValueError("x" * 100_000), limit, allow_pickle=False)
        opened = reading.raised_by(content, allow_pickle=False).open()

        assert len(content) <= limit
        assert (type(opened), opened.type_name) == (RemoteError, "ValueError")
        assert opened.message.startswith("xx")
        assert opened.traceback.endswith("xxx\n")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_message_size", 10),
        ("max_message_size", 1e6),
        ("max_message_size", True),
        ("allow_pickle", 1),
    ],
)
def test_wrong_limits_are_refused_when_the_spec_is_made(option, value):
    with pytest.raises(SpecError) as refusal:
        process(callees.obedient, **{option: value})

    assert (refusal.value.path, refusal.value.field) == ("obedient", option)


# Exceptions stay sealed until a reader asks


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
    """Its class, its arguments, its attributes and its notes; and no text is made of it
    before.
    """
    error.add_note("a note")
    sealed = told(error)
    assert is_sealed(sealed)
    opened = sealed.open()

    assert facts_of(opened) == facts_of(error)
    assert repr(opened) == repr(error)
    assert opened.__notes__ == ["a note"]
    assert isinstance(opened.__cause__, RemoteTraceback)
    assert str(opened.__cause__) == '\n"""\nits traceback"""'


def test_attributes_that_are_no_part_of_the_dict_arrive():
    slotted = callables.Slotted()
    slotted.place = 3
    os_error = told(PermissionError(13, "no", "here")).open()

    assert told(slotted).open().place == 3
    assert (os_error.errno, os_error.filename) == (13, "here")
    assert told(SystemExit(4)).open().code == 4
    assert told(ImportError("x", name="n")).open().name == "n"


def test_no_code_of_its_class_runs_when_it_is_opened():
    """Neither constructor nor __setstate__ nor a property; what the class says of
    pickling is not asked.
    """
    error = callables.Watchful("one", 2)
    packed = epitaph.pack(error, False)
    del callables.CALLS[:]
    opened = told(ValueError(), packed=packed).open()

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
def test_what_is_no_exception_of_this_program_is_told_as_text(said, tmp_path, monkeypatch):
    """Nothing is called, and no module imported, because of a name that a child has
    sent.
    """
    monkeypatch.chdir(tmp_path)
    opened = told(ValueError("bad luck"), packed=json.dumps(said).encode()).open()

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
    opened = told(ValueError("bad luck"), packed=json.dumps(said).encode()).open()

    assert callables.CALLS == []
    assert type(opened) is RemoteError


def test_plain_keys_arrive():
    """Members of enums among them, and what the standard library hashes in Python."""
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

    assert told(error).open().args == error.args


@pytest.mark.parametrize(
    "packed", [b"{", b"\xff", b"[" * 100_000, b'"' + b"x" * protocol.LARGEST + b'"'], ids=len
)
def test_what_cannot_be_read_is_told_as_text(packed):
    assert type(told(ValueError("bad luck"), packed=packed).open()) is RemoteError


def test_what_is_not_plain_is_told_as_text():
    """So are too many values, and what refers to itself."""
    error = ValueError()
    error.args = (error,)
    for bad in (
        ValueError(threading.Lock()),
        ValueError(object),
        ValueError([0] * protocol.MOST),
        error,
    ):
        assert epitaph.pack(bad, False) == b""
        assert type(told(ValueError("x"), packed=b"").open()) is RemoteError


def test_a_pickle_is_not_opened_unless_that_is_allowed():
    sealed = told(ValueError("x"), packed=pickle.dumps(callables.Made()))
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
    opened = told(error, word=word).open()

    assert type(opened) is {"": RemoteError, "Fatal": Fatal, "Ignore": Ignore}[word]


def test_an_exception_is_opened_once():
    """Readers on several threads get the same object; two reasons that share it are
    equal while it is sealed.
    """
    sealed = told(callables.Plain(1, 2))
    reason, other = ExitReason(CRASHED, sealed), ExitReason(CRASHED, sealed)
    assert reason == other
    assert reason != ExitReason(CRASHED, told(callables.Plain(1, 2)))
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
    monkeypatch.setattr(
        reading.SealedException, "_rebuilt", lambda sealed: pytest.fail("it was opened")
    )
    reason = ExitReason(CRASHED, told(ValueError("bad luck")), "detail")
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
    """The names of the threads on which exceptions have been opened."""
    names, rebuilt = [], reading.SealedException._rebuilt

    def note(sealed):
        names.append(threading.current_thread().name)
        return rebuilt(sealed)

    monkeypatch.setattr(reading.SealedException, "_rebuilt", note)
    return names


def test_neither_a_supervisor_nor_the_log_opens_an_exception(launch, recorder, opened_on, capfd):
    """A crash, the restart, the escalation through two levels, and what the log writes
    of them use the words.
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
    """It uses ``raised``: to ask for ``exception`` would open what a process has
    sent.
    """
    asks = [
        one.lineno
        for one in ast.walk(ast.parse(inspect.getsource(module)))
        if getattr(one, "attr", "") == "exception"
    ]

    assert asks == []


def test_the_cause_of_a_failed_start_is_opened_by_its_caller(launch, opened_on):
    """So it is for start, and for start_child; what a report shows before are the
    words.
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


def test_a_failed_start_in_a_report_has_the_words_as_its_cause():
    reason = ExitReason(CRASHED, told(callables.Plain(1, 2)))
    error = otpy.reports.start_error("app/x", reason)

    assert type(error.__cause__) is RemoteError
    assert "1 and 2" in str(error.__cause__)


def test_the_next_incarnation_gets_the_last_exit_sealed(stage):  # noqa: F811
    """It opens it by the same rules."""
    reason = ExitReason(CRASHED, told(ValueError("bad luck")))
    last = pickle.loads(parcel.pickled_exit(reason))

    assert is_sealed(last.raised)
    assert (
        repr(context(last_exit=pickle.dumps(reason)).last_exit.exception)
        == "ValueError('bad luck')"
    )


def test_what_does_not_travel_to_the_next_incarnation_is_told_as_text():
    error = ValueError(threading.Lock())
    last = pickle.loads(parcel.pickled_exit(ExitReason(CRASHED, error, threading.Lock())))

    assert type(last.exception) is RemoteError
    assert last.exception.type_name == "ValueError"
    assert "lock object" in last.exception.message
    assert "lock object" in last.detail


def test_allow_pickle_unpickles_on_the_thread_of_the_reader(stage):  # noqa: F811
    reason = end_of(stage(process(callables.raise_it, "Made", allow_pickle=True)))
    del callables.CALLS[:]
    assert "Made" in f"{reason} {reason.traceback}"
    assert callables.CALLS == []

    assert repr(reason.exception) == "ValueError('made')"
    [call] = callables.CALLS
    assert call == ("make", threading.current_thread().name)


def test_an_exception_cannot_end_the_program():
    """Its pickling would, where it is unpickled; here it is not."""
    opened = told(callables.Deadly("bad luck")).open()

    assert (type(opened), opened.args) == (callables.Deadly, ("bad luck",))


# What is interrupted is finished by the next call


class Alarm(Exception):
    """What a signal handler raises."""


class Pipe:
    """A socket that takes some bytes of each call, and keeps them."""

    def __init__(self, *takes):
        self.bytes, self._takes = bytearray(), list(takes)

    def setblocking(self, on):
        pass

    def send(self, data):
        take = self._takes.pop(0) if self._takes else len(data)
        if isinstance(take, BaseException):
            raise take
        self.bytes += data[:take]
        return min(take, len(data))

    def states(self):
        """Return the states that have arrived; what is incomplete must not be there."""
        messages = reading.Messages(LIMIT)
        found = [
            content for kind, content in messages.cut(bytes(self.bytes)) if kind == protocol.STATE
        ]
        assert not messages._begun, "a message was not finished"
        return found


def at_step(number, act, function, *args):
    """Call *function*, and *act* before the bytecode instruction *number* of remote.py;
    return whether there is one.
    """
    left = [number]

    def step(frame, event, arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            left[0] -= 1
            if not left[0]:
                sys.settrace(None)
                frame.f_trace = None
                act()
        return step

    def trace(frame, event, arg):
        return step(frame, event, arg) if frame.f_code.co_filename == far_side.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*args)
    except Alarm:
        pass
    finally:
        sys.settrace(before)
    return left[0] <= 0


def interrupted(handler):
    """Yield a wire after a call of ``send`` that *handler* has interrupted, for each
    instruction and some sockets.
    """
    at_step(
        1 << 30, None, far_side.Wire(Pipe()).send, protocol.STATE, b""
    )  # 3.12 sees no instruction of a first call
    for takes in ((), (3,), (20, 5), (HEAD_ONLY,)):
        number = 1
        while True:
            end = Pipe(*takes)
            sender = far_side.Wire(end)
            if not at_step(
                number,
                lambda sender=sender: handler(sender),
                sender.send,
                protocol.STATE,
                b"interrupted",
            ):
                break
            yield sender, end
            number += 1
        assert number > 50


HEAD_ONLY = protocol.HEAD.size


def ring(sender):
    raise Alarm


def test_an_interrupted_send_loses_no_later_message():
    """Whatever instruction of it a signal handler interrupts, and whatever the socket
    had taken by then.
    """
    for sender, end in interrupted(ring):
        sender.send(protocol.STATE, b"later")

        assert end.states() in ([b"later"], [b"interrupted", b"later"])


def test_a_signal_handler_may_send():
    """In the middle of a send as well; what it has sent is out when that one
    returns.
    """
    for _, end in interrupted(lambda sender: sender.send(protocol.STATE, b"handler")):
        assert sorted(end.states()) == [b"handler", b"interrupted"]


def test_a_signal_handler_may_send_and_raise():
    def send_and_raise(sender):
        sender.send(protocol.STATE, b"handler")
        raise Alarm

    for sender, end in interrupted(send_and_raise):
        sender.send(protocol.STATE, b"later")

        states = end.states()
        assert b"handler" in states
        assert states[-1] == b"later"


def test_only_the_last_state_of_a_handler_waits():
    """So a handler that is called again and again does not fill the memory."""

    def send_twice(sender):
        sender.send(protocol.STATE, b"handler 1")
        sender.send(protocol.STATE, b"handler 2")

    for _, end in interrupted(send_twice):
        assert b"handler 2" in end.states()


def test_a_socket_that_does_not_block_is_not_the_end():
    """Something in the process has changed the mode of the descriptor."""
    near, far = socket.socketpair()
    arrived = bytearray()

    def read():
        while len(arrived) < protocol.HEAD.size + (1 << 20):
            arrived.extend(near.recv(1 << 16))
        near.shutdown(socket.SHUT_WR)

    with near, far:
        sender = far_side.Wire(far)
        far.setblocking(False)
        reader = threading.Thread(target=read)
        reader.start()
        sender.send(protocol.STATE, bytes(1 << 20))
        far.setblocking(False)

        assert sender.orders() == b""
        reader.join(HANG)


def test_what_is_sent_when_the_program_is_gone_is_lost():
    sender = far_side.Wire(Pipe(BrokenPipeError(), ConnectionResetError()))
    sender.send(protocol.STATE, b"one")
    sender.send(protocol.STATE, b"two")
    sender.send(protocol.STATE, b"three")

    assert sender._end.states() == [b"three"]


def test_when_memory_is_short_in_the_middle_every_later_check_in_is_refused():
    """How much has gone is not known then, so nothing more can be said; and that is
    told, each time.
    """
    ctx = context()
    ctx._wire = far_side.Wire(Pipe(3, MemoryError()))
    with pytest.raises(MemoryError):
        ctx.check_in("one")
    for state in ("two", "three"):
        with pytest.raises(BrokenPipeError, match="memory was short"):
            ctx.check_in(state)

    assert ctx.state is None
    assert len(ctx._wire._end.bytes) == 3


def test_memory_that_is_short_before_a_message_is_begun_changes_nothing(monkeypatch):
    ctx = context()
    ctx._wire = far_side.Wire(Pipe())
    monkeypatch.setattr(far_side, "HEAD", None)
    with pytest.raises(AttributeError):  # stands for a MemoryError
        ctx.check_in("one")
    monkeypatch.undo()
    ctx.check_in("two")

    assert [pickle.loads(state) for state in ctx._wire._end.states()] == ["two"]


def test_the_last_word_is_said_whatever_handlers_raise():
    end = Pipe(Alarm(), 3, Alarm(), KeyboardInterrupt())
    sender = far_side.Wire(end)
    far_side._report_end(sender, -1, ValueError("bad luck"))
    (kind, content), *again = heard(bytes(end.bytes))

    assert kind == protocol.EXIT
    assert all(one == (kind, content) for one in again)
    assert repr(reading.raised_by(content, allow_pickle=False)) == "ValueError('bad luck')"


def test_when_nothing_can_be_said_the_traceback_is_left_where_stacks_are():
    """The near side looks there when it has heard of no exit."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as dump:
        sender = far_side.Wire(Pipe(MemoryError()))
        with pytest.raises(MemoryError):
            sender.send(protocol.STATE, b"one")
        far_side._report_end(sender, write, ValueError("bad luck"))
        os.close(write)

        assert dump.read() == b"ValueError: bad luck\n"


SAVES_UNDER_ALARMS = 20


def save_under_alarms(ctx):
    """Save large states; an alarm rings in the middle of many. Then save a small
    one.
    """

    def on_alarm(number, frame):
        raise Alarm

    signal.signal(signal.SIGALRM, on_alarm)
    rung = 0
    for turn in range(SAVES_UNDER_ALARMS):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0003 + turn % 10 * 0.0003)
            ctx.check_in((turn, bytes(2 << 20)))
            signal.setitimer(signal.ITIMER_REAL, 0)
        except Alarm:
            rung += 1
    ctx.check_in(("last", rung))


def test_alarms_lose_no_state(stage):  # noqa: F811
    """The same with real signals and a real socket."""
    scene = stage(process(save_under_alarms))
    assert end_of(scene).kind is ExitKind.NORMAL

    assert pickle.loads(scene.child.state.pickled)[0] == "last"


def test_news_after_the_first_of_being_up_is_one_message(stage):  # noqa: F811
    """However often a child says so, its supervisor hears it once."""
    scene = stage(process(say_up_often))
    news = [scene.hear()]
    while not isinstance(news[-1], ChildExited):
        news.append(scene.hear())

    assert len(news) == 2


def say_up_often(ctx):
    for _ in range(100):
        ctx._wire.send(protocol.UP)


# Its end is told, whatever is raised in the thread that listens to it

QUICK, SLOW = ("head", "-c", "16"), ("sleep", "1000")
"""Programs that stand for the interpreter: one ends when it has read some bytes, the
other has to be killed.
"""


KEPT = {module.__file__ for module in (keeper, parcel, processes, reading, wires)}
"""The files whose code the keeper's thread runs."""


def raise_at_line(number):
    """Return a trace function that raises Alarm once, at the line *number* of callee.py
    that a thread comes to.

    The interpreter comes to a ``with`` twice, and the second time nothing but a trace
    function can raise there: that would leave the lock locked.
    """
    left = [number]

    def step(frame, event, arg):
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and frame.f_code.co_name != "run" and not text.startswith("with "):
            left[0] -= 1
            if not left[0]:
                raise Alarm
        return step

    return lambda frame, event, arg: step if frame.f_code.co_filename in KEPT else None


def has_a_process_or_ended(child):
    return (child._line.process is not None and child._line.process.pid) or not child.alive


@pytest.mark.parametrize("command", [QUICK, SLOW], ids=lambda command: command[0])
def test_an_exception_at_any_line_of_its_thread_ends_it_and_is_told(command, stage, monkeypatch):  # noqa: F811
    """As another thread may raise one there. No process is left, no descriptor, and no
    thread.
    """
    pids, start = [], posix.start_process

    def start_process(*args, **options):
        popen = start(*args, **options)
        pids.append(popen.pid)
        return popen

    processes.tracker_descriptor()
    monkeypatch.setattr(posix, "start_process", start_process)
    monkeypatch.setattr(processes, "_python", lambda *args: list(command))
    spec, number, raised = process(callees.obedient), 0, True
    while raised:
        number += 1
        threading.settrace(raise_at_line(number))
        try:
            scene = stage(spec)
        finally:
            threading.settrace(None)
        if command is SLOW:
            wait_until(functools.partial(has_a_process_or_ended, scene.child))
            scene.child.kill(1.0)
        reason = end_of(scene)
        raised = type(reason.exception) is Alarm
        wait_until(lambda: not scene.child.alive)  # noqa: B023

    assert number > 50
    assert not wires.near_ends
    assert all(is_reaped(pid) for pid in pids)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_of_a_callable_whose_thread_was_lost_is_told(stage, monkeypatch):  # noqa: F811
    """What comes when its thread is about to tell the end ends that thread; a witness tells then."""
    end, calls = keeper.Keeper.end, []

    def interrupted_twice(child, error):
        calls.append(threading.current_thread())
        if len(calls) < 3:
            raise SystemExit
        end(child, error)

    monkeypatch.setattr(keeper.Keeper, "end", interrupted_twice)
    scene = stage(process(callees.obedient))
    scene.hear()
    scene.child._line.process.kill()
    reason = end_of(scene)

    assert str(reason.exception) == "its thread ended without a word"
    assert calls[0] is calls[1] is not calls[2]
    wait_until(lambda: not calls[2].is_alive())
