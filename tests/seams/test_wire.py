"""What a callable says is data: it is bounded, and an interrupt loses nothing of it."""

import os
import pickle
import random
import signal
import socket
import sys
import threading

import pytest

import otpy
from otpy import ExitKind, ProtocolError, RemoteError, SpecError, process
from otpy.children.callable import (
    epitaph,
    far_side,
    protocol,
    reading,
)
from otpy.core.messages import ChildExited
from tests import callable_stage, callees
from tests.callable_stage import context, end_of, is_reaped  # noqa: F401 - fixtures
from tests.helpers import HANG
from tests.seams import callables

stage, where = callable_stage.stage, callable_stage.where


LIMIT = 1 << 20


def heard(*pieces, limit=LIMIT):
    """Return the messages in what comes in these *pieces*."""
    messages = reading.Messages(limit)
    return [message for piece in pieces for message in messages.cut(piece)]


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
    """Nothing is read, or kept, of a wrong message."""
    with pytest.raises(ProtocolError, match=said):
        heard(head)


def test_a_message_as_large_as_the_limit_is_heard():
    """The limit itself is allowed."""
    content = bytes(LIMIT)

    assert heard(protocol.HEAD.pack(protocol.STATE, LIMIT), content) == [(protocol.STATE, content)]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_check_in_that_allows_no_number_of_seconds_is_refused(seconds):
    """It would spoil the order of the supervisor's deadlines."""
    with pytest.raises(ProtocolError, match="allows"):
        reading.allowed(protocol.ALLOWED.pack(seconds))


def test_rubbish_is_a_protocol_error_or_nothing_and_is_never_opened():
    """No bytes, cut anywhere, cause another exception, or more than a sealed one."""
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


def test_a_callable_that_sends_something_too_large_is_killed_and_the_reason_is_reported(stage):
    """A head that announces 4 GiB is enough."""
    reason = end_of(stage(process(callables.send_raw, protocol.STATE, (1 << 32) - 1)))

    assert reason.kind is ExitKind.CRASHED
    assert type(reason.exception) is ProtocolError
    assert "a message of 4294967295 bytes (max_message_size: 67108864)" in str(reason)


def test_a_process_that_holds_the_wire_and_sends_for_ever_holds_up_no_end(stage):
    """The end of the callable is reported, and the process that goes on sending is
    killed.
    """
    reason = end_of(
        stage(process(callables.leave_a_flood, protocol.BEAT, protocol.ALLOWED.pack(0.0)))
    )

    assert reason.kind is ExitKind.CRASHED
    assert str(reason) == "crashed: SystemExit(3)"


def test_a_state_that_is_too_large_is_refused_where_it_is_saved():
    """The error names its size and the limit; the state before stays."""
    ctx = context(max_message_size=50_000)
    ctx.check_in("before")
    with pytest.raises(
        ValueError, match=r"100009 bytes, pickled: expected at most 50000 \(max_message_size\)"
    ):
        ctx.check_in("x" * 100_000)

    assert ctx.state == "before"
    assert len(ctx._wire.frames) == 1


def test_an_exception_that_is_too_large_is_reported_in_short():
    """Its name is always there; its text and its traceback are cut."""
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
    """The error names the option."""
    with pytest.raises(SpecError) as refusal:
        process(callees.obedient, **{option: value})

    assert (refusal.value.path, refusal.value.field) == ("obedient", option)


class Alarm(Exception):
    """The exception that a signal handler raises."""


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
        """Return the states that have arrived; each message must be complete."""
        messages = reading.Messages(LIMIT)
        found = [
            content for kind, content in messages.cut(bytes(self.bytes)) if kind == protocol.STATE
        ]
        assert not messages._begun, "a message was not finished"
        return found


def at_step(number, act, function, *args):
    """Call *function*, and *act* before the bytecode instruction *number* of far_side.py.

    Returns:
        Whether it has so many instructions.
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
    """Yield a wire and its socket after a ``send`` that *handler* has interrupted.

    That is done for each instruction of it, and for some sockets.
    """
    # Python 3.12 traces no instruction of the first call.
    at_step(1 << 30, None, far_side.Wire(Pipe()).send, protocol.STATE, b"")
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
    """A handler may raise at any instruction, whatever the socket has taken by then."""
    for sender, end in interrupted(ring):
        sender.send(protocol.STATE, b"later")

        assert end.states() in ([b"later"], [b"interrupted", b"later"])


def test_a_signal_handler_may_send():
    """Its message is out when the ``send`` that it has interrupted returns."""
    for _, end in interrupted(lambda sender: sender.send(protocol.STATE, b"handler")):
        assert sorted(end.states()) == [b"handler", b"interrupted"]


def test_a_signal_handler_may_send_and_raise():
    """The message of the handler goes out before later ones."""

    def send_and_raise(sender):
        sender.send(protocol.STATE, b"handler")
        raise Alarm

    for sender, end in interrupted(send_and_raise):
        sender.send(protocol.STATE, b"later")

        states = end.states()
        assert b"handler" in states
        assert states[-1] == b"later"


def test_only_the_last_state_of_a_handler_waits():
    """A handler that is called again and again does not fill the memory."""

    def send_twice(sender):
        sender.send(protocol.STATE, b"handler 1")
        sender.send(protocol.STATE, b"handler 2")

    for _, end in interrupted(send_twice):
        assert b"handler 2" in end.states()


def test_a_socket_that_does_not_block_is_not_the_end():
    """Other code of the process has changed the mode of the descriptor."""
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


def test_what_is_sent_when_the_parent_process_is_gone_is_lost():
    """The call returns, and later messages are whole."""
    sender = far_side.Wire(Pipe(BrokenPipeError(), ConnectionResetError()))
    sender.send(protocol.STATE, b"one")
    sender.send(protocol.STATE, b"two")
    sender.send(protocol.STATE, b"three")

    assert sender._end.states() == [b"three"]


def test_when_memory_is_short_in_the_middle_every_later_check_in_is_refused():
    """An unknown part of the message has gone, so no other message can follow; each
    call says so.
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
    """The next message goes out as usual."""
    ctx = context()
    ctx._wire = far_side.Wire(Pipe())
    monkeypatch.setattr(far_side, "HEAD", None)
    with pytest.raises(AttributeError):  # stands for a MemoryError
        ctx.check_in("one")
    monkeypatch.undo()
    ctx.check_in("two")

    assert [pickle.loads(state) for state in ctx._wire._end.states()] == ["two"]


def test_the_exit_is_sent_whatever_handlers_raise():
    """It may come twice, but it comes whole."""
    end = Pipe(Alarm(), 3, Alarm(), KeyboardInterrupt())
    sender = far_side.Wire(end)
    far_side._report_end(sender, -1, ValueError("bad luck"))
    (kind, content), *again = heard(bytes(end.bytes))

    assert kind == protocol.EXIT
    assert all(one == (kind, content) for one in again)
    assert repr(reading.raised_by(content, allow_pickle=False)) == "ValueError('bad luck')"


def test_when_no_exit_can_be_sent_the_traceback_is_left_where_stacks_are():
    """The parent process looks there when it has got no EXIT."""
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
    """Save large states while alarms ring in the middle of many; then save a small one."""

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


def test_alarms_lose_no_state(stage):
    """The same with real signals and a real socket."""
    scene = stage(process(save_under_alarms))
    assert end_of(scene).kind is ExitKind.NORMAL

    assert pickle.loads(scene.child.state.pickled)[0] == "last"


def test_news_after_the_first_of_being_up_is_one_message(stage):
    """A child may say so often; its supervisor hears it once."""
    scene = stage(process(say_up_often))
    news = [scene.hear()]
    while not isinstance(news[-1], ChildExited):
        news.append(scene.hear())

    assert len(news) == 2


def say_up_often(ctx):
    for _ in range(100):
        ctx._wire.send(protocol.UP)
