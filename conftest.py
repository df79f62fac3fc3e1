"""Runs the Python code of README.md and docs/, block by block, each page in its own namespace."""

from __future__ import annotations

import threading
import time
from typing import Any

import structlog
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from otpy.runtime import threads

HANG = 10.0


def open_document(namespace: dict[str, Any]) -> None:
    """Make its code believe that it is a program: what pytest does about threads that crash does not concern it."""
    namespace["__name__"] = "__main__"
    namespace["__hook__"], threading.excepthook = threading.excepthook, threading.__excepthook__
    namespace["__before__"] = threads.entries()  # what a test has left is that one's failure


def close_document(namespace: dict[str, Any]) -> None:
    """Undo what it has configured, and assert that no thread of ours outlives the document."""
    threading.excepthook = namespace["__hook__"]
    structlog.reset_defaults()
    deadline = time.monotonic() + HANG
    left = [entry for entry in threads.entries() if entry not in namespace["__before__"]]
    for entry in left:
        entry.thread.join(max(0.0, deadline - time.monotonic()))
    assert not [entry.thread.name for entry in left if entry.thread.is_alive()]


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=open_document,
    teardown=close_document,
).pytest()
