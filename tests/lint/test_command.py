"""The command: paths, selection of rules, configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from otpy import lint
from tests.lint.tools import THREAD

# The command


def test_findings_are_printed(place, capsys):
    place("a.py")

    assert lint.main(["a.py"]) == 1
    assert capsys.readouterr() == (f"a.py:2:1: OTP001 {lint.RULES['OTP001']}\n", "")


def test_nothing_found_is_status_0(place, run):
    place("a.py", "")

    assert run("a.py", ".") == (0, [], [])


def test_directories_are_walked(place, run):
    for path in [
        "b/c.py",
        "a.py",
        "b/a/d.py",
        "b/e.txt",
        ".hidden/f.py",
        "env/lib/g.py",
        "b/__pycache__/h.pyc",
    ]:
        place(path)
    place("env/pyvenv.cfg", "")

    assert run(".") == (1, ["a.py OTP001", "b/c.py OTP001", "b/a/d.py OTP001"], [])
    assert run("b/e.txt", "b", "./b/c.py") == (
        1,
        ["b/e.txt OTP001", "b/c.py OTP001", "b/a/d.py OTP001"],
        [],
    )
    assert run("env", ".hidden") == (1, ["env/lib/g.py OTP001", ".hidden/f.py OTP001"], [])


def test_a_directory_that_cannot_be_listed(place, run, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    place("a/b.py")
    monkeypatch.setattr(os, "scandir", refuse)

    assert run("a") == (2, [], ["otpy.lint: [Errno 13] Permission denied: 'a'"])


@pytest.mark.parametrize("arguments", [["a.py", "nowhere"], ["--config", "nowhere.toml", "a.py"]])
def test_what_does_not_exist(place, run, arguments):
    place("a.py")
    status, findings, [complaint] = run(*arguments)

    assert (status, findings) == (2, [])
    assert "nowhere" in complaint


@pytest.mark.parametrize("arguments", [[], ["--wrong", "a.py"]])
def test_a_wrong_call(place, run, arguments):
    assert run(*arguments)[:2] == (2, [])


ALL = ["OTP001", "OTP101", "OTP903", "OTP102"]


@pytest.mark.parametrize(
    ("select", "codes"),
    [
        ("OTP", ALL),
        ("OTP0,OTP1", ALL),
        ("OTP001", ["OTP001", "OTP903"]),
        ("OTP1", ["OTP101", "OTP903", "OTP102"]),
        ("OTP002, OTP102", ["OTP903", "OTP102"]),
        ("OTP9", ["OTP903"]),
    ],
)
def test_rules_are_selected(place, run, select, codes):
    """An allow comment is not left over because what it allows is not selected."""
    place(
        "a.py",
        THREAD
        + "Thread(daemon=True)\nx = 1  # otpy: allow it was short\nx.daemon = True\nThread()  # otpy: allow one",
    )

    assert run("--select", select, "a.py") == (1, [f"a.py {code}" for code in codes], [])


@pytest.mark.parametrize("select", ["", "OTP001,", "E501", "OTP0010", "otp001"])
def test_a_wrong_selection(place, run, select):
    place("a.py")
    status, findings, [complaint] = run("--select", select, "a.py")

    assert (status, findings) == (2, [])
    assert "no code begins with" in complaint


@pytest.mark.parametrize(
    ("glob", "exempt"),
    [
        ("src/a.py", ["src/a.py"]),
        ("src", ["src/a.py", "src/b/a.py"]),
        ("src/", ["src/a.py", "src/b/a.py"]),
        ("src/**", ["src/a.py", "src/b/a.py"]),
        ("src/*", ["src/a.py", "src/b/a.py"]),
        ("src/*.py", ["src/a.py"]),
        ("**/a.py", ["a.py", "src/a.py", "src/b/a.py"]),
        ("**/b/**", ["src/b/a.py"]),
        ("a.*", ["a.py"]),
        ("?.py", ["a.py"]),
        ("*", ["a.py", "src/a.py", "src/b/a.py"]),
        ("sr", []),
        ("[as].py", []),
        ("", []),
    ],
)
def test_files_are_exempt(place, run, glob, exempt):
    files = ["a.py", "src/a.py", "src/b/a.py"]
    for path in files:
        place(path)
    place("pyproject.toml", f"[tool.otpy.lint]\nexempt = ['{glob}']\n")
    status, findings, _ = run(*files)

    assert findings == [f"{path} OTP001" for path in files if path not in exempt]
    assert status == bool(findings)


def test_what_is_exempt_is_not_read(place, run):
    place("a.py", "a syntax error  # otpy: allow")
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['a.py']")

    assert run("a.py", ".") == (0, [], [])


def test_the_nearest_configuration_counts(place, run, monkeypatch, tmp_path):
    """Its globs are relative to its own directory."""
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['top/in/*.py', 'a.py']")
    place("other/pyproject.toml", "[tool.otpy.lint]\nallow-timer = false\nexempt = ['*', '**']")
    for path in ["top/in/a.py", "top/in/b/a.py", "top/a.py"]:
        place(path, "import threading\nthreading.Timer(threading.Thread())\n")
    monkeypatch.chdir(tmp_path / "top" / "in")

    assert run("a.py", "../in/a.py", "b", "../a.py")[1] == ["b/a.py OTP001", "../a.py OTP001"]
    assert run("--config", "../../other/pyproject.toml", "a.py")[1] == [
        "a.py OTP004",
        "a.py OTP001",
    ]
    assert run(str(tmp_path / "top" / "in" / "a.py"))[0] == 0


def test_no_configuration_is_needed(place, run, monkeypatch):
    place("a.py")
    monkeypatch.setattr(Path, "is_file", lambda _path: False)

    assert run("a.py") == (1, ["a.py OTP001"], [])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("[tool.otpy.lint]\nexclude = []", "no key 'exclude'"),
        ("[tool.otpy.lint]\nallow_timer = true", "no key 'allow_timer'"),
        ("[tool.otpy.lint]\nexempt = 'tests'", "expected a list of globs"),
        ("[tool.otpy.lint]\nexempt = [1]", "expected a list of globs"),
        ("[tool.otpy.lint]\nallow-timer = 1", "expected true or false"),
        ("[tool.otpy]\nlint = 1", "lint = 1: expected a table"),
        ("tool = []", "tool = []: expected a table"),
        ("[tool", "pyproject.toml: "),
    ],
)
def test_a_wrong_configuration(place, run, content, complaint):
    place("a.py")
    place("pyproject.toml", content)
    status, findings, [told] = run("a.py")

    assert (status, findings) == (2, [])
    assert complaint in told


def test_others_settings_are_theirs(place, run):
    place("a.py", "")
    place("pyproject.toml", "[tool.otpy.other]\nexclude = 1\n[tool.ruff]\nexempt = 1\n")

    assert run("a.py") == (0, [], [])
