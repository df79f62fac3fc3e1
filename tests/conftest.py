"""Fixtures of all tests: trees that are stopped, and the law that no thread outlives its test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

import otpy
from otpy import threads
from tests.helpers import HANG, Recorder

hypothesis.settings.register_profile("otpy", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("otpy")


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for entry in threads.entries():
        entry.thread.join(HANG)
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(HANG)
    assert not [thread for thread in left if thread.is_alive()]
    assert not threads.entries()


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
