"""The stage of the tests of callables: fixtures, and what several files ask about a process."""

import json
import os
import pathlib

import pytest

from otpy.children.callable import far_side
from otpy.children.callable.child import MAX_MESSAGE_SIZE
from otpy.core.messages import ChildExited
from tests.helpers import close, wait_until
from tests.test_child_contract import Stage


@pytest.fixture
def stage():
    stages = []

    def set_up(spec):
        stages.append(Stage(spec))
        return stages[-1]

    yield set_up
    for one in stages:
        close(one.tree)


@pytest.fixture
def where(tmp_path):
    """Return the name of a file that does not exist yet."""
    return str(tmp_path / "said")


def heard(where):
    """Wait until a process has written the file *where*, and return its content."""
    wait_until(pathlib.Path(where).exists, f"nothing said in {where}")
    return json.loads(pathlib.Path(where).read_text())


def is_gone(pid):
    """Return whether the process *pid* runs no more.

    A zombie does not run; some machines have no init that would reap it.
    """
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def is_reaped(pid):
    """Return whether no process has the number *pid*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def descriptors():
    """Return how many descriptors are open here."""
    return len(list(pathlib.Path("/proc/self/fd").iterdir()))


def end_of(scene):
    """Return why the child ended."""
    while not isinstance(news := scene.hear(), ChildExited):
        pass
    return news.reason


class Ear:
    """A wire that keeps the messages and sends none."""

    def __init__(self):
        self.frames = []

    def send(self, kind, content=b""):
        self.frames.append((kind, content))


def context(**facts):
    common = {
        "path": "app/x",
        "incarnation": 1,
        "ready": False,
        "heartbeat": None,
        "snapshot": None,
    }
    common |= {"max_message_size": MAX_MESSAGE_SIZE, "allow_pickle": False}
    return far_side.RemoteContext(
        far_side.Facts(**{**common, "last_exit": None, "state": None, **facts}), Ear()
    )
