"""What the tests of the linter share: a place with sources, and a call."""

from __future__ import annotations

import re

import pytest

from otpy import lint


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory to be in; ``place(path, content)`` writes a file there."""
    monkeypatch.chdir(tmp_path)

    def write(path, content="import threading\nthreading.Thread()\n"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)

    return write


@pytest.fixture
def run(capsys):
    """Run the command: its exit status, the codes and files found, and the lines of its complaint."""

    def call(*arguments):
        try:
            status = lint.main(arguments)
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        return (
            status,
            [re.sub(r":\d+:\d+: (\w+) .*", r" \1", line) for line in out.splitlines()],
            err.splitlines(),
        )

    return call
