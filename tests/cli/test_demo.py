"""``otpy demo``, and the reference of the command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from otpy.cli import demo, reference
from tests import pages
from tests.cli.tools import HANG, command, environment, otpy_process, start_process

# demo


def test_the_demo_crashes_recovers_and_gives_up(call, monkeypatch):
    monkeypatch.setattr(demo, "LIVES", (0.01,) * 6)
    monkeypatch.setattr(demo, "PAUSE", 0.001)
    done = call("demo")
    told = re.findall(r"^ *[\d.]+ s  (.*)$", done.stdout, re.MULTILINE)

    assert done.exit_code == 0
    assert told[4:6] == [
        "shop/payments/bank has ended: crashed",
        "shop/payments/bank is up, life 2",
    ]
    assert told.count("shop/payments/bank has ended: crashed") == 6
    assert told.count("shop/payments gives up: that was one restart too many") == 2
    assert told[-1] == "shop gives up: that was one restart too many"
    assert done.stdout.endswith(f"{demo.MORAL}\n")


def test_the_picture_shows_what_was_reported():
    spec = demo.tree()
    picture = demo.Picture(spec)
    assert picture.states["shop/payments/bank"] == "starting"
    seen = []
    demo_events = demo.events(spec, picture)
    for line in demo_events:
        seen.append(picture.states["shop/payments/bank"])
        if "has ended" in line:
            break
    demo_events.close()

    assert seen == ["starting", "starting", "running", "running", "restarting"]
    assert picture.states["shop/till"] == "running"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_demo_on_a_terminal_and_without_one_ends_by_itself(tmp_path):
    """Both at the same time; the one draws, the other one prints lines."""
    import pty

    ours, theirs = pty.openpty()
    drawn = subprocess.Popen(
        command("demo"),
        cwd=tmp_path,
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    printed = otpy_process("demo", cwd=tmp_path)
    text = read_all(ours).decode()
    os.close(ours)

    assert drawn.wait(HANG) == printed.returncode == 0
    assert "\x1b[" in text
    assert "restarting" in text
    assert "gave up" in text
    assert "\x1b" not in printed.stdout
    assert printed.stdout.count("is up, life") >= 9
    assert printed.stderr == ""
    assert list(tmp_path.iterdir()) == []


def read_all(descriptor):
    chunks = []
    try:
        while chunk := os.read(descriptor, 65536):
            chunks.append(chunk)
    except OSError:  # how Linux says that the other end is closed
        pass
    return b"".join(chunks)


def test_ctrl_c_ends_the_demo(tmp_path):
    process = start_process("demo", cwd=tmp_path, bufsize=1)
    try:
        assert "shop/till is up" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
        process.communicate()

    assert process.returncode == 130
    assert "Traceback" not in err


# The reference


def test_the_reference_is_up_to_date():
    text = pages.read("cli.md")

    assert reference.page(text) == text, "run python -m otpy.cli.reference docs/reference/cli.md"


def test_a_page_without_the_mark_is_refused():
    with pytest.raises(ValueError, match="the page has no line"):
        reference.page("# Something else\n")
