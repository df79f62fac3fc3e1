"""``otpy run``: how it stops, how it ends, and what it writes."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.cli.tools import HANG, otpy_process, start_process

# run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_tree_in_order(app, number):
    process = start_process("run", "app:tree", cwd=app)
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["loaded\n", "up\n"]
        process.send_signal(number)
        out, err = process.communicate(timeout=HANG)
    finally:
        process.kill()
        process.communicate()

    assert (process.returncode, out) == (0, "down\n")
    assert "progress" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("place", "args", "limit"),
    [
        ("first process", [], 25.0),
        ("Kubernetes", [], 25.0),
        ("elsewhere", [], None),
        ("first process", ["--stop-timeout", "3"], 3.0),
        ("elsewhere", ["--stop-timeout", "0"], 0.0),
    ],
)
def test_how_long_a_stop_may_take(call, monkeypatch, place, args, limit):
    """As the first process of a container, and in Kubernetes, it ends before its manager kills all of it."""
    given = {}
    monkeypatch.setattr("otpy.run", lambda tree, **options: given.update(options))
    monkeypatch.setattr(os, "getpid", lambda: 1 if place == "first process" else 2)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    if place == "Kubernetes":
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")

    assert call("run", "app:tree", *args).exit_code == 0
    assert given["stop_timeout"] == limit


def test_a_tree_that_ends_by_itself_is_a_success(call):
    assert call("run", "app:ending").exit_code == 0


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            "app:failing",
            "otpy run: app gave up: limit_reached: ConnectionError('no network'); the reports above tell why",
        ),
        (
            "app:unready",
            "otpy run: app/broken did not start: crashed: .*; the reports above tell why",
        ),
    ],
)
def test_a_tree_that_gives_up_ends_with_70(app, target, line):
    done = otpy_process("run", target, "--log-format", "json", cwd=app)
    *reports, last = done.stderr.splitlines()

    assert done.returncode == 70
    assert re.fullmatch(line.replace("(", r"\(").replace(")", r"\)"), last)
    assert all(json.loads(report)["level"] for report in reports)


def test_verbose_shows_why_a_tree_gave_up(call):
    done = call("run", "--verbose", "app:failing")

    assert done.exit_code == 70
    assert "otpy.exceptions.TreeFailed: app gave up" in done.stderr


def test_reports_are_lines_for_people(app):
    done = otpy_process("run", "app:ending", cwd=app)

    assert done.stdout == "loaded\n"
    assert re.search(
        r"^[\d-]+ [\d:]+ \[info     \] progress +incarnation=1 path=app/once$",
        done.stderr,
        re.MULTILINE,
    )
    assert re.search(
        r"\[info     \] hello +answer=42 incarnation=1 path=app/once$", done.stderr, re.MULTILINE
    )
    assert "\x1b" not in done.stderr


def test_reports_are_lines_of_json(app):
    done = otpy_process("run", "app:ending", "--log-format", "json", cwd=app)
    lines = [json.loads(line) for line in done.stderr.splitlines()]

    assert {line["event"] for line in lines} == {"progress", "hello", "auto_shutdown_begun"}
    assert all({"level", "timestamp", "path"} <= set(line) for line in lines)


def test_a_target_that_configures_structlog_has_the_last_word(app):
    (app / "own.py").write_text(
        "from app import ending as tree\nimport structlog, sys\n"
        "structlog.configure(processors=[lambda *call: 'OWN ' + call[2]['event']],"
        " logger_factory=structlog.PrintLoggerFactory(sys.stderr))\n",
        "utf-8",
    )
    done = otpy_process("run", "own", "--log-format", "json", cwd=app)

    assert set(done.stderr.splitlines()) == {"OWN progress", "OWN hello", "OWN auto_shutdown_begun"}


def test_reports_go_to_a_file_as_well(call, app):
    (app / "reports").write_text("what was there\n", "utf-8")
    assert call("run", "app:failing", "--reports", "reports").exit_code == 70
    first, *lines = (app / "reports").read_text("utf-8").splitlines()
    reports = [json.loads(line) for line in lines]

    assert first == "what was there"
    assert [one["report"] for one in reports] == [
        "Progress",
        "ChildTerminated",
        "Progress",
        "ChildTerminated",
        "LimitReached",
    ]
    assert reports[0] | {"time": 0} == {
        "report": "Progress",
        "path": "app/broken",
        "incarnation": 1,
        "time": 0,
        "thread": "app/broken",
        "reason": None,
        "cause": "init",
    }
    reason = reports[1]["reason"]
    assert (reason["kind"], reason["exception"]) == ("crashed", "ConnectionError('no network')")
    assert reason["traceback"].endswith("ConnectionError: no network\n")
    assert reports[4]["escalation"]["intensity"] == 1
    assert reports[4]["escalation"]["chain"] == []


def test_a_report_with_a_value_that_has_no_repr_is_written():
    from otpy.cli.run import plain

    class Bad:
        def __repr__(self):
            raise ValueError

    assert plain(Bad()) == "<Bad without a repr>"
