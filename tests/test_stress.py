"""Many threads at once: afterwards no thread, no queue entry and no file descriptor is left over."""

import pathlib
import random
import threading
from collections import Counter

import pytest

import otpy
from otpy import Refusal, StartError, dynamic_supervisor, supervisor, thread
from otpy.reports import ChildTerminated, Progress
from otpy.runtime import threads
from tests.helpers import HANG, Recorder, wait_until

OPEN_FILES = pathlib.Path("/proc/self/fd")


def descriptors():
    return len(list(OPEN_FILES.iterdir())) if OPEN_FILES.is_dir() else 0


def crasher(ctx, seed, crashes):
    """Crash a few times at odd moments, then settle down."""
    dice = random.Random(seed * 1000 + ctx.incarnation)
    if ctx.incarnation <= crashes:
        ctx.sleep(dice.choice([0, 0, 0.001, 0.003]))
        if ctx.running:
            raise ValueError(ctx.incarnation)
    ctx.wait_stop()


@pytest.mark.timeout(120)
def test_hundreds_crash_while_callers_meddle():
    """Every death is told once; every call is answered; in the end nothing is left."""
    before = descriptors()
    recorder = Recorder()
    groups = [
        supervisor(
            f"g{n}",
            strategy=strategy,
            intensity=100_000,
            children=[thread(crasher, n * 100 + k, crashes, id=f"c{k}") for k in range(size)],
        )
        for n, (strategy, size, crashes) in enumerate(
            [
                ("one_for_one", 100, 5),
                ("rest_for_one", 20, 2),
                ("one_for_all", 10, 2),
                ("one_for_one", 100, 3),
            ]
        )
    ]
    tree = supervisor("app", children=[*groups, dynamic_supervisor("pool", intensity=100_000)])
    answers: Counter = Counter()

    def meddle(app, seed):
        dice = random.Random(seed)
        handles = [app.find(f"app/{id}") for id in ("g0", "g1", "g2", "g3", "pool")]
        for n in range(60):
            handle = dice.choice(handles)
            id = f"c{dice.randrange(20)}"
            call = dice.choice(
                [
                    lambda h=handle, id=id: h.terminate_child(id),
                    lambda h=handle, id=id: h.restart_child(id),
                    lambda h=handle, n=n, id=id: h.start_child(
                        thread(crasher, seed * 60 + n, 1, id=id)
                    ),
                    lambda h=handle: h.which_children(),
                    lambda h=handle: h.snapshot(),
                    lambda h=handle: h.count_children(),
                ]
            )
            try:
                call()
                answers["done"] += 1
            except (Refusal, StartError) as error:
                answers[type(error).__name__] += 1

    with otpy.start(tree, reports=recorder, log=False) as app:
        meddlers = [threading.Thread(target=meddle, args=(app, seed)) for seed in range(6)]
        for meddler in meddlers:
            meddler.start()
        for meddler in meddlers:
            meddler.join(HANG * 3)
            assert not meddler.is_alive()
        core = app._tree.directory
        boxes = [core[path].mailbox for path in core]

    assert sum(answers.values()) == 6 * 60
    assert app.stop().unstopped == ()
    assert all(box.empty() for box in boxes)
    assert app._tree.directory.keys() == {"app"}
    wait_until(lambda: not threads.entries())
    assert descriptors() == before
    lives = Counter((one.path, one.incarnation) for one in recorder.of(Progress))
    deaths = Counter(
        (one.path, one.incarnation, id(one.reason.exception))
        for one in recorder.of(ChildTerminated)
    )
    assert set(deaths.values()) == {1}
    assert len(deaths) > 500
    assert lives


def test_all_crash_at_once():
    """A thousand children of one supervisor raise at the same moment; each is replaced once."""
    count = 1000
    recorder, gate, back = Recorder(), threading.Event(), threading.Semaphore(0)

    def target(ctx):
        if ctx.incarnation == 1:
            gate.wait(HANG)
            raise ValueError
        back.release()
        ctx.wait_stop()

    children = [thread(target, id=f"c{n}") for n in range(count)]
    with otpy.start(
        supervisor("app", intensity=count, children=children), reports=recorder, log=False
    ) as app:
        gate.set()
        for _ in range(count):
            assert back.acquire(timeout=HANG)
        assert {info.incarnation for info in app.which_children()} == {2}
        wait_until(lambda: len(recorder.of(ChildTerminated)) >= count)

    assert Counter(one.path for one in recorder.of(ChildTerminated)) == Counter(
        f"app/c{n}" for n in range(count)
    )


def test_trees_start_and_stop_from_many_threads():
    """Whoever stops first; all others get the same report."""
    tree = supervisor(
        "app", children=[thread(lambda ctx: ctx.wait_stop(), id=f"c{n}") for n in range(3)]
    )

    def life():
        app = otpy.start(tree, log=False)
        reports = []
        stoppers = [threading.Thread(target=lambda: reports.append(app.stop())) for _ in range(3)]
        for stopper in stoppers:
            stopper.start()
        for stopper in stoppers:
            stopper.join(HANG)
        outcomes.append(len(reports) == 3 and all(report is reports[0] for report in reports))

    outcomes: list[bool] = []
    lives = [threading.Thread(target=life) for _ in range(20)]
    for one in lives:
        one.start()
    for one in lives:
        one.join(HANG)

    assert outcomes == [True] * 20


def test_threads_are_interrupted_at_any_moment():
    """Children that end at the moment they are interrupted: one end each, and none is taken for a stray."""
    for _ in range(60):
        recorder = Recorder()
        children = [
            thread(
                lambda ctx, n=n: sum(range(n * 50)),
                id=f"c{n}",
                restart="temporary",
                shutdown="brutal_kill",
            )
            for n in range(20)
        ]
        app = otpy.start(supervisor("app", children=children), reports=recorder, log=False)
        report = app.stop()

        assert report.unstopped == ()
        assert not [one for one in recorder.names() if "Unstopped" in one]
