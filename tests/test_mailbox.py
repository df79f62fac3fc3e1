"""Mailbox, timers and replies."""

import itertools
import math
import queue
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import CallTimeout
from otpy.runtime.mailbox import Mailbox, Timers
from otpy.runtime.waiting import Bell, Door, Once, Reply, bounded
from tests.helpers import HANG


class Injected(Exception):
    pass


def enter_and_be_hit(door, at):
    """Use *door*, and have an exception raised at moment number *at*; return whether there was such a one."""
    seen = 0

    def hit(frame, event, arg):
        nonlocal seen
        # where the interpreter looks for exceptions from elsewhere
        if event in ("call", "c_return") and frame.f_code in (
            use.__code__,
            Door.__enter__.__code__,
        ):
            seen += 1
            if seen == at:
                sys.setprofile(None)
                raise Injected

    def use():
        with door:
            len("inside")

    sys.setprofile(hit)
    try:
        use()
    except Injected:
        return True
    finally:
        sys.setprofile(None)
    return False


@pytest.mark.parametrize("kind", [threading.Lock, threading.RLock])
def test_no_exception_leaves_a_door_locked(kind):
    """Whatever raises it, wherever."""
    door = Door(kind())
    moments = itertools.takewhile(lambda at: enter_and_be_hit(door, at), itertools.count(1))
    assert all(is_free(door) for _ in moments)

    assert is_free(door)


def is_free(door):
    """Whether another thread can take it."""
    found = []

    def take():
        found.append(door.acquire(blocking=False))
        if found[0]:
            door.release()

    taker = threading.Thread(target=take)
    taker.start()
    taker.join(HANG)
    return found[0]


def test_a_door_lets_one_in_at_a_time():
    """As its lock does."""
    door, inside = Door(threading.Lock()), []

    def enter():
        with door:
            inside.append(1)

    other = threading.Thread(target=enter)
    with door:
        other.start()
        assert not is_free(door)
        assert inside == []
    other.join(HANG)

    assert inside == [1]
    assert is_free(door)


def test_what_is_put_is_read_in_order():
    """It is a queue."""
    box = Mailbox()
    box.put(1)
    box.put(2)

    assert (box.get(None), box.get(None), box.empty()) == (1, 2, True)


def test_an_empty_mailbox_times_out():
    """As a queue does."""
    with pytest.raises(queue.Empty):
        Mailbox().get(-1.0)


def test_a_closed_mailbox_refuses_what_is_left_and_what_comes():
    """Nothing is lost."""
    box, refused = Mailbox(), []
    box.put(1)
    box.close(refused.append)
    box.put(2)

    assert refused == [1, 2]


def test_nothing_is_lost_while_a_mailbox_closes():
    """Writers and the closer race; every item goes somewhere, once."""
    for _ in range(200):
        box, refused = Mailbox(), []
        start = threading.Barrier(3)

        def write(first, box=box, start=start):
            start.wait(HANG)
            for item in range(first, first + 50):
                box.put(item)

        writers = [threading.Thread(target=write, args=(first,)) for first in (0, 50)]
        for writer in writers:
            writer.start()
        start.wait(HANG)
        read = [box.get(HANG) for _ in range(5)]
        box.close(refused.append)
        for writer in writers:
            writer.join(HANG)

        assert sorted(read + refused) == list(range(100))


def test_waits_are_bounded_by_what_the_platform_can():
    """No time-out overflows."""
    assert [bounded(-1.0), bounded(1.0)] == [0.0, 1.0]
    assert bounded(math.inf) == bounded(1e300) == threading.TIMEOUT_MAX


def test_timers():
    """The earliest first; a timer that is armed again or disarmed does not fire."""
    timers = Timers()
    timers.arm(1, 5.0)
    timers.arm(2, 3.0)
    timers.arm(1, 4.0)
    timers.disarm(2)
    timers.disarm(7)

    assert (timers.next(), len(timers)) == (4.0, 1)
    assert timers.pop_due(3.9) is None
    assert timers.pop_due(4.0) == 1
    assert timers.next() is None
    assert timers.pop_due(math.inf) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), st.integers(0, 20)))))
def test_timers_agree_with_a_dict(orders):
    """None disarms; what fires is what a plain dict of deadlines would say, and the heap stays small."""
    timers, model = Timers(), {}
    for ref, at in orders * 3:
        timers.disarm(ref) if at is None else timers.arm(ref, at)
        model.pop(ref, None) if at is None else model.update({ref: at})

        assert timers.next() == min(model.values(), default=None)
        assert len(timers._heap) <= 64 + 2 * len(model) + 1
    fired = []
    while (ref := timers.pop_due(10)) is not None:
        fired.append(ref)

    assert sorted(fired) == sorted(ref for ref, at in model.items() if at <= 10)


def test_timers_that_are_armed_again_and_again():
    """What was armed before does not pile up."""
    timers = Timers()
    for at in range(1000):
        timers.arm(1, float(at))

    assert len(timers._heap) <= 66
    assert (timers.next(), len(timers)) == (999.0, 1)


def test_a_reply_is_given_once_to_all_who_wait():
    """A value or an exception."""
    reply = Reply()
    assert not reply.is_given
    reply.answer(42)

    assert (reply.wait(None, "p"), reply.wait(0.0, "p"), reply.is_given) == (42, 42, True)


def test_a_reply_that_does_not_come():
    """The caller can go on."""
    with pytest.raises(CallTimeout) as caught:
        Reply().wait(0.0, "app")

    assert caught.value.path == "app"


def test_a_reply_that_is_itself_a_timeout():
    """It is not taken for a missing one."""
    reply = Reply()
    reply.refuse(CallTimeout("elsewhere"))

    with pytest.raises(CallTimeout, match="elsewhere"):
        reply.wait(1.0, "here")


def test_the_bell_rings_for_a_reply():
    """Before or after a thread waits for it; a wait for a missing one ends in time."""
    bell, early, late = Bell(), Reply(), Reply()
    bell.open()
    try:
        early.answer(1)
        giver = threading.Thread(target=late.answer, args=(2,))
        giver.start()

        assert bell.wait(early, lambda: math.inf)
        assert bell.wait(late, lambda: time.monotonic() + HANG)
        giver.join(HANG)
        assert not bell.wait(Reply(), lambda: 0.0)
    finally:
        bell.close()
    bell.close()
    bell._ring()  # too late, and harmless


def test_who_waits_for_a_reply_is_woken_wherever_it_is():
    """Many threads wait while one gives the answer: each either sees it or is woken."""
    for _ in range(200):
        reply, start = Reply(), threading.Barrier(5)
        heard = queue.SimpleQueue()

        def wait(reply=reply, start=start, heard=heard):
            start.wait(HANG)
            heard.put(reply.wait(HANG, "p"))

        waiters = [threading.Thread(target=wait) for _ in range(4)]
        for waiter in waiters:
            waiter.start()
        start.wait(HANG)
        reply.answer("yes")

        assert [heard.get(timeout=HANG) for _ in waiters] == ["yes"] * 4
        for waiter in waiters:
            waiter.join(HANG)


def test_nothing_is_kept_of_those_who_gave_up():
    """Who waits again and again with a short limit leaves nothing behind."""
    once = Once()
    for _ in range(10):
        assert once.wait(0.0) is False

    assert once._wakers == {}
