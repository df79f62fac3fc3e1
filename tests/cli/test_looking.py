"""``otpy check``, ``otpy show`` and ``otpy lint``: they start nothing."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.cli.tools import HANG, environment, otpy_process

# check


def test_check_prints_findings_and_ends_with_1_if_one_is_an_error(call):
    done = call("check", "app:worst")

    assert done.exit_code == 1
    assert done.stdout.startswith(
        "app: error TREE101 the limit, 3 restarts in 5 s, can never be reached: "
    )
    assert done.stdout.endswith("\napp: errors: 1, warnings: 0, notes: 0\n")


def test_check_starts_nothing_and_is_content_with_a_good_tree(app):
    done = otpy_process("check", "app", cwd=app)

    assert (done.returncode, done.stdout) == (0, "app: errors: 0, warnings: 0, notes: 0\n")
    assert done.stderr == "loaded\n"


def test_check_ends_with_0_if_there_are_only_warnings(call, app):
    (app / "warned.py").write_text(
        "from otpy import dynamic_supervisor\ntree = dynamic_supervisor('pool')\n", "utf-8"
    )
    done = call("check", "warned")

    assert "TREE104" in done.stdout
    assert done.exit_code == 0


def test_check_as_json(call):
    done = call("check", "app:worst", "--json")
    [finding] = json.loads(done.stdout)

    assert done.exit_code == 1
    assert set(finding) == {"code", "level", "path", "message"}
    assert (finding["code"], finding["level"], finding["path"]) == ("TREE101", "error", "app")
    assert json.loads(call("check", "app", "--json").stdout) == []


# show

WIDE = [
    ('the "app"', "supervisor, rest_for_one, 3 restarts in 5 s"),
    ("polite", "thread, permanent, heartbeat 30 s, backoff 1 to 30 s"),
    ("tidy", "periodic, transient"),
    ("pool", "dynamic_supervisor, one_for_one, 3 restarts in 5 s, at most 7 children, permanent"),
]


def test_show_draws_with_rich(app):
    done = otpy_process("show", "app:wide", cwd=app, PYTHONIOENCODING="utf-8", COLUMNS="40")

    assert done.stdout.splitlines() == [
        f"{WIDE[0][0]}  {WIDE[0][1]}",
        f"├── polite  {WIDE[1][1]}  says <hello>",
        f"├── tidy  {WIDE[2][1]}",
        f"└── pool  {WIDE[3][1]}",
    ]


def test_show_as_text(call):
    done = call("show", "app:wide", "--format", "text")

    first, *rest = [f"{id}: {facts}" for id, facts in WIDE]
    assert done.stdout.splitlines() == [first, *(f"  {line}" for line in rest)]


def test_show_says_what_else_is_unusual(call):
    done = call("show", "app:ending", "--format", "text")

    assert done.stdout.splitlines() == [
        "app: supervisor, one_for_one, 3 restarts in 5 s, auto_shutdown any_significant",
        "  once: thread, transient, significant",
    ]


def test_show_as_json(call):
    done = call("show", "app:wide", "--format", "json")
    tree = json.loads(done.stdout)
    polite, tidy, pool = tree["children"]

    assert (tree["path"], tree["kind"], tree["strategy"]) == (
        'the "app"',
        "supervisor",
        "rest_for_one",
    )
    assert (polite["path"], polite["kind"], polite["restart"]) == (
        'the "app"/polite',
        "thread",
        "permanent",
    )
    assert (polite["heartbeat"], polite["backoff"]["maximum"], polite["shutdown"]) == (30, 30, 5.0)
    assert (tidy["kind"], tidy["restart"]) == ("periodic", "transient")
    assert (pool["kind"], pool["max_children"], pool["children"]) == ("dynamic_supervisor", 7, [])
    assert "children" not in polite


def test_show_as_mermaid(call):
    done = call("show", "app:wide", "--format", "mermaid")

    assert done.stdout.splitlines() == [
        "flowchart TD",
        f'    n0["the #quot;app#quot;<br>{WIDE[0][1]}"]',
        f'    n1["polite<br>{WIDE[1][1]}"]',
        "    n0 --> n1",
        f'    n2["tidy<br>{WIDE[2][1]}"]',
        "    n0 --> n2",
        f'    n3["pool<br>{WIDE[3][1]}"]',
        "    n0 --> n3",
    ]


def test_show_as_dot(call):
    done = call("show", "app:wide", "--format", "dot")

    assert done.stdout.splitlines() == [
        r'digraph "the \"app\"" {',
        "    node [shape=box]",
        rf'    "the \"app\"" [label="the \"app\"\n{WIDE[0][1]}"]',
        rf'    "the \"app\"/polite" [label="polite\n{WIDE[1][1]}"]',
        r'    "the \"app\"" -> "the \"app\"/polite"',
        rf'    "the \"app\"/tidy" [label="tidy\n{WIDE[2][1]}"]',
        r'    "the \"app\"" -> "the \"app\"/tidy"',
        rf'    "the \"app\"/pool" [label="pool\n{WIDE[3][1]}"]',
        r'    "the \"app\"" -> "the \"app\"/pool"',
        "}",
    ]


def test_show_knows_kinds_that_otpy_does_not(call, app):
    (app / "kinds.py").write_text(
        "from otpy import ChildSpec, supervisor\n"
        "class RobotStart:\n    def __call__(self, birth): raise NotImplementedError\n"
        "tree = supervisor('app', children=[ChildSpec(id='a', start=RobotStart()), ChildSpec(id='b', start=print)])\n",
        "utf-8",
    )
    done = call("show", "kinds", "--format", "text")

    assert done.stdout.splitlines()[1:] == ["  a: robot, permanent", "  b: print, permanent"]
    assert (
        call("show", "kinds").exit_code == call("show", "kinds", "--format", "json").exit_code == 0
    )


# lint


def test_lint_is_the_linter_as_a_module(app):
    (app / "raw.py").write_text(
        "import threading\nthreading.Thread(daemon=True).start()\n", "utf-8"
    )

    def both(*args):
        guard = subprocess.run(
            [sys.executable, "-m", "otpy.lint", *args],
            cwd=app,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        ours = otpy_process("lint", *args, cwd=app)
        assert (ours.returncode, ours.stdout) == (guard.returncode, guard.stdout)
        return ours

    assert both("raw.py").returncode == 1
    assert len(both("raw.py").stdout.splitlines()) == 2
    assert "OTP101" in both("--select", "OTP1", ".").stdout
    assert both("app.py").returncode == 0
    assert both("nix.py").returncode == 2
    assert both("--config", "nix.toml", "raw.py").returncode == 2
