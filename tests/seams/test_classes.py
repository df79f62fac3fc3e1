"""Classes in place of functions: each builder refuses a class that it could only instantiate."""

from __future__ import annotations

import functools
import multiprocessing
import threading

import pytest

import otpy
from otpy import (
    adopt,
    coroutine,
    periodic,
    process,
    registry,
    supervisor,
    thread,
)
from otpy.reports import ChildTerminated
from otpy.taskgraph import TaskGraph


class AClass:
    def __init__(self, *args):
        pass


class Worker(threading.Thread):
    def __init__(self, *args):
        super().__init__()


class Meta(type):
    def __call__(cls, *args):
        return super().__call__()


class Singleton(metaclass=Meta):
    pass


CLASSES = {
    "a thread": Worker,
    "a process": multiprocessing.Process,
    "a partial": functools.partial(Worker, 1),
    "any class": AClass,
    "a builtin": dict,
    "with a metaclass": Singleton,
    "an exception": ValueError,
}


@pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize(
    "build",
    [
        lambda cls: thread(cls, id="a"),
        lambda cls: periodic(cls, id="a"),
        lambda cls: coroutine(cls, id="a"),
        lambda cls: process(cls, id="a"),
        lambda cls: registry.spawn(cls, name="a"),
        lambda cls: TaskGraph().add(cls, "a"),
        lambda cls: TaskGraph().task(name="a")(cls),
    ],
    ids=["thread", "periodic", "coroutine", "process", "spawn", "add", "task"],
)
def test_a_class_is_refused_by_every_builder(build, cls):
    """A call of it makes an object and returns: nothing of the object's runs."""
    with pytest.raises(otpy.SpecError, match=r"a: (target|function) = .*: expected a"):
        build(cls)


def test_a_service_is_refused_where_it_cannot_run():
    """Only a thread runs one."""

    class Modern(otpy.Service):
        def run(self):
            pass

    assert thread(Modern).id == "Modern"
    for build in (periodic, process, lambda cls: registry.spawn(cls, name="t"), TaskGraph().add):
        with pytest.raises(otpy.SpecError, match="would only make an object"):
            build(Modern)


def test_a_class_with_a_run_method_is_refused_with_advice():
    """The error names ``adopt``, which can run it."""
    with pytest.raises(otpy.SpecError, match=r"thread\(adopt\(…\)\) calls the run\(\) of one"):
        thread(Worker)


def test_adopt_refuses_what_it_cannot_run_in_a_thread(launch, recorder):
    """The author of a process class counts on another process; that of an async run on
    a loop.
    """

    class Job(multiprocessing.Process):
        def run(self):
            raise AssertionError("this runs in a thread of this process")

    class AsyncJob:
        async def run(self):
            pass

    class Picky:
        def run(self, what):
            pass

    class Rude:
        def run(self):
            pass

        def stop(self, when):
            pass

    for factory in (Job, functools.partial(Job, name="job")):
        with pytest.raises(
            otpy.SpecError, match=r"no multiprocessing\.Process.*give a function to process\(\)"
        ):
            adopt(factory)
    with pytest.raises(
        otpy.SpecError, match=r"plain methods without arguments \(run: an async function\)"
    ):
        adopt(AsyncJob)
    with pytest.raises(otpy.SpecError, match=r"\(run: missing a required argument: 'what'\)"):
        adopt(Picky)
    with pytest.raises(otpy.SpecError, match=r"\(stop: missing a required argument: 'when'\)"):
        adopt(Rude)
    adopt(Rude, stop=lambda rude: rude.stop(0))

    launch(
        supervisor("app", children=[thread(adopt(lambda: Job()), id="job", restart="temporary")])
    )
    assert "no multiprocessing.Process" in str(
        recorder.wait_for(ChildTerminated, "app/job").reason.exception
    )
