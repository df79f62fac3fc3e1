"""The linter as a module, as a plugin of flake8, and as a hook of pre-commit."""

from __future__ import annotations

import re
import shutil
import sys

import pytest

from otpy import lint
from tests.lint.tools import ROOT, THREAD, execute

# For others


def test_as_a_module(tmp_path):
    """Also where a stream cannot print a path, and a file has the name of a module that otpy needs."""
    bad, env = (
        tmp_path / "ä" / "attrs.py",
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
    )
    bad.parent.mkdir()
    bad.write_text("import threading\nthreading.Thread()\n")
    module = [sys.executable, "-P", "-m", "otpy.lint"]
    told = f"attrs.py:2:1: OTP001 {lint.RULES['OTP001']}\n"

    assert execute(*module, "attrs.py", cwd=bad.parent) == (1, told)
    status, output = execute(*module, ".", cwd=tmp_path, **env)
    assert (status, output[0], output[-len(told) :]) == (1, "\\", told)
    assert execute(*module, "nowhere", cwd=tmp_path) == (
        2,
        "otpy.lint: nowhere: no such file or directory\n",
    )
    assert execute(*module, str(ROOT / "otpy" / "core" / "restarts.py"), cwd=tmp_path) == (0, "")


def test_as_a_plugin_of_flake8(place, tmp_path):
    """If there is no such plugin here: install otpy anew, as ``pip install -e .`` does."""
    place(
        "bad.py",
        THREAD
        + "'ä', Thread(\n  daemon=True)\nThread()  # otpy: allow one\nThread()  # noqa: OTP001\n# otpy: allow x\n",
    )
    place("good.py", "import threading\nlock = threading.Lock()\n")
    place("exempt.py")
    place("pyproject.toml", "[tool.otpy.lint]\nexempt = ['exempt.py']\n")
    flake8 = [sys.executable, "-m", "flake8", "--select", "OTP"]

    places = {"2:6": "OTP001", "3:3": "OTP101", "6:1": "OTP903"}
    findings = [f"./bad.py:{place}: {code} {lint.RULES[code]}\n" for place, code in places.items()]

    assert execute(*flake8, ".", cwd=tmp_path) == (1, "".join(findings))
    assert execute(*flake8, "good.py", "exempt.py", cwd=tmp_path) == (0, "")


def test_flake8_has_the_rules_on_by_default(place, tmp_path):
    """Beside its own."""
    place("bad.py", "import os\nimport threading\n\nthreading.Thread()\n")
    _, output = execute(sys.executable, "-m", "flake8", "bad.py", cwd=tmp_path)

    assert re.findall(r"^bad.py:(\d+):\d+: (\w+)", output, re.MULTILINE) == [
        ("1", "F401"),
        ("4", "OTP001"),
    ]


def commit(repository):
    """Make a repository of a directory, and return its only commit."""
    git = [
        "git",
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@localhost",
        "-c",
        "init.defaultBranch=main",
    ]
    for command in (
        ["init", "--quiet"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "all"],
    ):
        assert execute(*git, *command, cwd=repository) == (0, "")
    return execute(*git, "rev-parse", "HEAD", cwd=repository)[1].strip()


@pytest.mark.timeout(300)  # it makes an environment and installs otpy in it
def test_as_hooks_of_pre_commit(tmp_path):
    """In another repository, which takes the hooks from a commit of the files here as they are now."""
    hooks, other = tmp_path / "hooks", tmp_path / "other"
    shutil.copytree(ROOT / "otpy", hooks / "otpy", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".pre-commit-hooks.yaml"):
        shutil.copy(ROOT / name, hooks)
    (other / "tests").mkdir(parents=True)
    (other / ".pre-commit-config.yaml").write_text(
        f"repos: [{{repo: '{hooks.as_uri()}', rev: {commit(hooks)}, "
        "hooks: [{id: otpy-no-raw-threads}, {id: otpy-no-daemon-threads}]}]"
    )
    (other / "pyproject.toml").write_text("[tool.otpy.lint]\nexempt = ['tests']\n")
    (other / "raw.py").write_text("import threading\nthreading.Thread()\n")
    (other / "daemons.py").write_text("worker.daemon = True\n")
    (other / "attrs.py").write_text("hides = 'what otpy needs'\n")
    (other / "tests" / "exempt.py").write_text("import threading\nthreading.Thread(daemon=True)\n")
    commit(other)

    def run(*arguments):
        command = [sys.executable, "-m", "pre_commit", "run", "--color=never", *arguments]
        status, output = execute(*command, cwd=other, PRE_COMMIT_HOME=str(tmp_path / "home"))
        results = re.findall(r"^(no \w+ threads) .*?(\w+)$", output, re.MULTILINE)
        return status, results, re.findall(r"^(\S+:\d+:\d+: \w+)", output, re.MULTILINE), output

    status, results, findings, output = run("--all-files")
    assert results == [("no raw threads", "Failed"), ("no daemon threads", "Failed")], output
    assert findings == ["raw.py:2:1: OTP001", "daemons.py:1:1: OTP102"]
    assert status == 1
    assert run("--files", "raw.py")[1] == [
        ("no raw threads", "Failed"),
        ("no daemon threads", "Passed"),
    ]
    assert run("--files", "daemons.py")[1] == [
        ("no raw threads", "Passed"),
        ("no daemon threads", "Failed"),
    ]
    assert run("--files", "attrs.py", "tests/exempt.py")[0] == 0
