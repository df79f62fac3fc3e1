"""What a supervisor's thread reads next."""

import threading

import pytest

from otpy.core.messages import SUPERVISOR, ChildStarted
from otpy.runtime import agenda as agendas
from otpy.runtime.agenda import Agenda, Reminder, TimeIsUp
from otpy.runtime.stop_timers import StopTimers
from otpy.runtime.waiting import SystemClock
from tests.helpers import HANG, ManualClock


def agenda(clock=SystemClock, stops=None, leisure=lambda: None):
    made = Agenda(clock, stops, leisure)
    made.ident = threading.get_ident()
    return made


def test_news_of_the_own_thread_come_before_the_mail():
    """So a child that dies on its first line has started before it has ended."""
    one, news = agenda(), ChildStarted(1)
    one.mailbox.put("mail")
    one.deliver(news)

    assert [one.next(), one.next()] == [news, "mail"]


def test_news_of_another_thread_are_mail():
    """Only the own thread may touch the news."""
    one = agenda()
    other = threading.Thread(target=one.deliver, args=(ChildStarted(1),))
    other.start()
    other.join(HANG)

    assert (len(one.news), one.mailbox.empty()) == (0, False)


def test_mail_is_read_before_a_deadline_and_a_flood_does_not_hold_it_up():
    """Mail that was there when time was up comes first; mail that comes then waits."""
    one = agenda()
    one.timers.arm(7, at=0.0)
    one.mailbox.put("before")
    first = one.next()
    one.mailbox.put("after")

    assert [first, one.next(), one.next()] == ["before", TimeIsUp(7, 0.0), "after"]


def test_mail_is_read_before_each_deadline():
    """Also when the mail that was read before the last one has cleared that."""
    one = agenda()
    one.timers.arm(7, at=0.0)
    one.mailbox.put("clears it")
    assert one.next() == "clears it"
    one.timers.disarm(7)
    one.mailbox.put("much later")
    assert one.next() == "much later"
    one.timers.arm(8, at=0.0)
    one.mailbox.put("before")

    assert [one.next(), one.next()] == ["before", TimeIsUp(8, 0.0)]


def test_a_reminder_calls_when_its_time_is_up():
    """It is no message: the next item is the mail."""
    one, calls = agenda(), []
    one.remind(0.0, lambda: calls.append(1))
    reminder = one.next()
    assert isinstance(reminder, Reminder)
    one.note(reminder)
    one.mailbox.put("mail")
    first = one.next()
    one.timers.arm(7, at=(later := SystemClock.monotonic()))

    assert (first, one.next(), calls) == ("mail", TimeIsUp(7, later), [1])


@pytest.mark.parametrize(("waiting", "done_after"), [(0, 1), (500, agendas.CHORES_AFTER + 1)])
def test_chores_are_done_when_there_is_no_mail_or_was_mail_for_long(waiting, done_after):
    """Once for many children; but a flood of mail does not put them off for ever."""
    one, done_at = agenda(), []
    read = 0
    one.chores.append(lambda: (done_at.append(read), one.deliver("left by the chore")))
    for _ in range(waiting):
        one.mailbox.put("mail")
    while not done_at:
        read += 1
        one.next()

    assert done_at == [done_after]


def test_a_calm_moment_is_used():
    """There is no mail for so long, and no deadline comes sooner."""
    worked = []

    def work():
        worked.append(1)
        one.mailbox.put("mail")

    one = agenda(leisure=lambda: None if worked else (0.001, work))
    one.timers.arm(7, at=SystemClock.monotonic() + HANG)

    assert (one.next(), worked) == ("mail", [1])


def test_a_deadline_of_a_stop_is_due_by_real_time_as_well():
    """By the clock that comes first, once; then both have forgotten it."""
    clock, stops = ManualClock(), StopTimers()
    one = agenda(clock, stops)
    for ref in (SUPERVISOR, 7):
        one.timers.arm(ref, clock.now + 10.0)
        stops.arm(ref, 0.0)  # it is not asked to stop yet: real time does not count for 7
    first = one.next()
    clock.advance(10.0)

    assert (first, one.next()) == (TimeIsUp(SUPERVISOR, None), TimeIsUp(7, clock.now))
    assert len(one.timers) == 0


def test_a_child_that_has_ended_has_no_deadline_in_real_time():
    """Its number means nothing any more."""
    stops = StopTimers()
    stops.asked.add(7)
    stops.arm(7, 0.0)
    stops.forget(7)
    stops.arm(7, 0.0)

    assert (stops.sooner(5.0), stops.sooner(None)) == (5.0, None)
