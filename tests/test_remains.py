"""What has ended, and who drops it: later children, or a helper thread."""

import threading

from otpy.runtime import remains
from otpy.runtime.remains import FULL, HANDED, Remains
from tests.helpers import wait_until


def kept():
    return Remains("app", object())


def hand_over(one, things):
    one.keep(things)
    return one.hand_over()


def test_lists_that_children_have_cleared_are_forgotten():
    """A crash loop leaves nothing behind, however long it goes on without a calm moment."""
    one = kept()
    for n in range(10 * HANDED):
        hand_over(one, [n]).clear()

    assert len(one._handed) <= HANDED


def test_lists_that_no_child_clears_are_released_when_they_are_many():
    """Their children may live for years, and their supervisor may never be calm."""
    one = kept()
    handed = [hand_over(one, [n]) for n in range(2 * FULL + 2)]
    wait_until(lambda: not any(handed[:FULL]), "a helper thread has cleared them")

    assert len(one._handed) <= FULL + 1


def test_the_lists_are_looked_through_seldom(monkeypatch):
    """Thousands of children that are replaced at once cost each the same."""
    looks = []

    class List(list):
        def __bool__(self):
            looks.append(threading.get_ident())
            return True

    monkeypatch.setattr(remains, "FULL", 1_000_000)
    one = kept()
    for _ in range(5000):
        one._things = List()
        one.hand_over()

    assert len(looks) < 3 * 5000
