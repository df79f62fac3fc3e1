"""Registries for tests, and what stuck threads wait for."""

from __future__ import annotations

import threading

import pytest

from otpy import registry
from otpy.registry import ThreadRegistry
from tests.helpers import HANG


@pytest.fixture
def reg():
    """A private registry."""
    one = ThreadRegistry()
    yield one
    one.shutdown_all(HANG)


@pytest.fixture
def whole():
    """A registry that sees what the default one sees, and that a test can shut down."""
    one = registry.registry.DefaultRegistry()
    yield one
    one.shutdown_all(HANG)


@pytest.fixture
def gate():
    """What stuck threads wait for; opened when the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def hook(monkeypatch):
    """The interpreter's own hook for crashed threads, instead of pytest's."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
