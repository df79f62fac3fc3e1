"""Fixtures of all tests: trees that are stopped, and the law that no thread outlives its test."""

from __future__ import annotations

import compileall
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import otpy
from otpy.children.callable.process import tracker_descriptor
from otpy.runtime import log, threads
from tests.helpers import HANG, Recorder

hypothesis.settings.register_profile("otpy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("otpy")

# A script that runs the tests in its background, or nohup, has these ignored. What the tests start would inherit that.
for _name, _usual in (
    ("SIGINT", signal.default_int_handler),
    ("SIGHUP", signal.SIG_DFL),
    ("SIGQUIT", signal.SIG_DFL),
):
    if (_number := getattr(signal, _name, None)) and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    before = set(
        threading.enumerate()
    )  # what a test before this one has left is that one's failure
    log.forget_complaints()  # what another test has heard before this one has not
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(HANG)
    assert not [thread for thread in left if thread.is_alive()]
    assert not [entry for entry in threads.entries() if entry.thread not in before]


@pytest.fixture(autouse=True, scope="session")
def _fresh_interpreters_find_otpy_compiled() -> None:
    """Tests start hundreds. Under PYTHONDONTWRITEBYTECODE each of them would compile otpy anew."""
    compileall.compile_dir(Path(otpy.__file__).parent, quiet=2)


@pytest.fixture(autouse=True, scope="session")
def _the_resource_tracker_is_there() -> None:
    """The first callable starts it, and this process keeps its descriptor: tests count descriptors."""
    if os.name == "posix":
        tracker_descriptor()


@pytest.fixture
def recorder() -> Recorder:
    """Gets the reports of every tree that ``launch`` starts."""
    return Recorder()


@pytest.fixture
def launch(recorder: Recorder) -> Iterator[Callable[..., otpy.Supervisor]]:
    """Start a tree, ``launch(spec, **options)``; it is stopped when the test ends."""
    apps: list[otpy.Supervisor] = []

    def start(spec: otpy.SupervisorSpec, **options: Any) -> otpy.Supervisor:
        app = otpy.start(spec, **{"reports": recorder, "log": False, **options})
        apps.append(app)
        return app

    yield start
    for app in apps:
        app.stop(10.0)
