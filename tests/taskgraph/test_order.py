"""Which task runs when, and how many run at once."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from otpy.taskgraph import TaskGraph
from tests.helpers import HANG
from tests.taskgraph.kit import FAILED, SKIPPED, fail, nothing

DAGS = st.integers(0, 25).flatmap(
    lambda size: st.tuples(
        st.permutations(range(size)),
        st.lists(st.sets(st.integers(0, 24), max_size=4), min_size=size, max_size=size),
        st.sets(st.integers(0, 24), max_size=4),
        st.integers(1, 5),
    )
)
"""Graphs: the order of declaration, for each task the tasks that it could come after,
the tasks that fail, and the number of workers. A task comes after lower numbers."""


class Journal:
    """Notes when tasks begin and end."""

    def __init__(self, failing=()):
        self.events, self.failing = [], failing
        self._lock, self._now = threading.Lock(), 0
        self.most = 0

    def body(self, number):
        def run():
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
                self.events.append(("begin", number))
            with self._lock:
                self._now -= 1
                self.events.append(("end", number))
            if number in self.failing:
                raise ValueError(number)

        return run

    def build(self, order, before, **options):
        graph = TaskGraph(**options)
        for number in order:
            graph.add(
                self.body(number), f"t{number}", [f"t{one}" for one in sorted(before[number])]
            )
        return graph


def descendants(before, sources):
    """Return the tasks that come after *sources*, directly or not."""
    found = set()
    for number in range(len(before)):  # in topological order
        if before[number] & (found | sources):
            found.add(number)
    return found


@given(DAGS)
@settings(max_examples=60)
def test_every_task_runs_once_and_after_those_that_it_comes_after(dag):
    """It holds for every order of declaration; no more tasks run at once than there are
    workers.
    """
    order, could, failing, workers = dag
    before = [{one for one in could[number] if one < number} for number in range(len(order))]
    journal = Journal(failing)
    summary = journal.build(order, before, workers=workers).run()

    assert sorted(number for what, number in journal.events if what == "begin") == sorted(order)
    for number in order:
        begun = journal.events.index(("begin", number))
        assert all(journal.events.index(("end", one)) < begun for one in before[number])
    assert journal.most <= workers
    assert list(summary.outcomes) == [f"t{number}" for number in order]
    assert {name for name, one in summary.outcomes.items() if one is FAILED} == {
        f"t{number}" for number in order if number in failing
    }


@given(DAGS)
@settings(max_examples=60)
def test_a_failure_skips_exactly_the_tasks_after_it(dag):
    """With ``on_failure="skip"`` the tasks that come after it, directly or not, are
    skipped.
    """
    order, could, failing, workers = dag
    before = [{one for one in could[number] if one < number} for number in range(len(order))]
    journal = Journal(failing)
    summary = journal.build(order, before, workers=workers, on_failure="skip").run()

    failed = set()
    for number in range(len(order)):
        if number in failing and number not in descendants(before, failed):
            failed.add(number)
    skipped = descendants(before, failed)
    ran = {number for what, number in journal.events if what == "end"}
    assert {name for name, one in summary.outcomes.items() if one is SKIPPED} == {
        f"t{one}" for one in skipped
    }
    assert set(summary.failures) == {f"t{one}" for one in failed}
    assert ran == set(order) - skipped
    assert summary.passed + summary.failed + summary.skipped == len(order)


def test_ready_tasks_run_in_the_order_of_declaration():
    """One worker takes the tasks that are ready as they were declared."""
    journal = Journal()
    graph = journal.build([3, 1, 2, 0, 4], [set(), {0}, set(), {0}, set()], workers=1)
    graph.run()

    assert [number for what, number in journal.events if what == "begin"] == [2, 0, 4, 3, 1]


def test_independent_tasks_run_side_by_side_on_so_many_threads():
    """Three tasks at a time meet at a barrier, and there are three threads."""
    barrier, seen = threading.Barrier(3), set()
    graph = TaskGraph(workers=3)
    for number in range(30):
        graph.add(
            lambda: (barrier.wait(HANG), seen.add(threading.current_thread())), name=f"t{number}"
        )

    assert graph.run().ok
    assert len(seen) == 3


def test_ten_thousand_tasks():
    """All tasks of a large graph run."""
    ran = []
    graph = TaskGraph()
    for number in range(10_000):
        graph.add(
            lambda number=number: ran.append(number),
            f"t{number}",
            [f"t{number - 100}"] if number >= 100 else [],
        )
    summary = graph.run()

    assert summary.passed == 10_000
    assert sorted(ran) == list(range(10_000))


def test_a_chain_of_thousands_that_is_skipped():
    """The code does not recurse into the graph."""
    graph = TaskGraph(on_failure="skip")
    graph.add(fail, "t0")
    for number in range(1, 5_000):
        graph.add(nothing, f"t{number}", [f"t{number - 1}"])

    assert graph.run().skipped == 4_999
