"""What the tests of the command line share: a directory with an application, and a call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

from otpy.cli.group import otpy
from tests.cli.tools import APP


@pytest.fixture
def app(tmp_path):
    (tmp_path / "app.py").write_text(APP, "utf-8")
    (tmp_path / "wrong.py").write_text(
        "from otpy import supervisor\ntree = supervisor('a', intensity=-1)\n", "utf-8"
    )
    (tmp_path / "syntax.py").write_text("tree = (\n", "utf-8")
    (tmp_path / "needs.py").write_text("import there_is_no_such_module\n", "utf-8")
    (tmp_path / "with_trees.py").write_text(
        "from app import make\nsome, other = make(), make()\n", "utf-8"
    )
    return tmp_path


@pytest.fixture
def call(app, monkeypatch):
    """Call the command line in this process, in the directory of the app, and leave nothing of it behind."""
    monkeypatch.chdir(app)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    yield lambda *args: CliRunner().invoke(otpy, args, prog_name="otpy")
    structlog.reset_defaults()
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and Path(sys.modules[name].__file__).parent == app
        ):
            del sys.modules[name]
