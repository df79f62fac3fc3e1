"""The command line as a whole: help, completion, wrong calls, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest

from otpy.cli.group import COMMANDS, otpy
from tests.cli.tools import HANG, ROOT, command, environment, otpy_process

# Help, completion, wrong calls


def test_the_help_lists_all_commands(call):
    done = call("--help")

    assert done.exit_code == 0
    listed = re.findall(r"^  (\w+)  ", done.stdout.partition("Commands:")[2], re.MULTILINE)
    assert listed == otpy.list_commands(click.Context(otpy))
    assert {"demo", "run", "check", "show", "lint"} <= set(listed) <= set(COMMANDS)


def test_it_says_its_version(call):
    """``otpy --version`` and ``otpy.__version__`` say what was installed."""
    version = importlib.metadata.version("otpy")

    assert call("--version").stdout == f"otpy {version}\n"
    assert importlib.import_module("otpy").__version__ == version


def test_without_a_command_there_is_help(call):
    assert call().stdout == call("--help").stdout


@pytest.mark.parametrize("name", ["demo", "run", "check", "show", "lint"])
def test_each_command_has_help_with_an_example(call, name):
    done = call(name, "--help")

    assert done.exit_code == 0
    assert done.stdout.startswith(f"Usage: otpy {name}")
    assert re.search(rf"\n  Examples:\n    otpy {name}", done.stdout)
    assert done.stderr == ""


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"]])
def test_help_loads_neither_the_library_nor_rich(args):
    """That would take several times as long as the help itself."""
    code = """
import sys
from otpy.cli import main
sys.argv[0] = "otpy"
try:
    main()
finally:
    loaded = {"otpy.api", "otpy.runtime.supervisor", "structlog", "attrs", "rich.console", "asyncio"} & set(sys.modules)
    sys.stderr.write(repr(sorted(loaded)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "[]")


WRONG = {
    # args: the one line that is told
    ("--nix",): r"otpy: No such option:? '?--nix'?\.? See otpy --help",
    ("nix",): r"otpy: No such command 'nix'\. See otpy --help",
    ("run",): r"otpy run: Missing argument 'TARGET'\. See otpy run --help",
    ("run", "--nix", "app"): r"otpy run: No such option:? '?--nix'?\.? See otpy run --help",
    (
        "run",
        "app",
        "more",
    ): r"otpy run: Got unexpected extra argument \(?'?more'?\)?\.? See otpy run --help",
    (
        "run",
        "app",
        "--log-format",
        "xml",
    ): r"otpy run: .*'--log-format': 'xml' is not one of 'console', 'json'.*",
    ("run", "app", "--reports", "."): r"otpy run: .*'--reports': File '\.' is a directory.*",
    (
        "run",
        "app",
        "--reports",
        "no/file",
    ): r"otpy run: --reports no/file: No such file or directory",
    ("show", "app", "--format", "pdf"): r"otpy show: .*'--format': 'pdf' is not one of .*'dot'.*",
    (
        "check",
        "app",
        "--json=1",
    ): r"otpy.*: Option '--json' does not take a value\. See otpy.* --help",
    ("lint",): r"otpy lint: Missing argument 'PATH\.\.\.'\. See otpy lint --help",
    ("lint", "nix"): r"otpy\.lint: nix: no such file or directory",
    ("lint", "app.py", "--select", "X"): r"otpy\.lint: --select X: no code begins with 'X'.*",
    (
        "demo",
        "now",
    ): r"otpy demo: Got unexpected extra argument \(?'?now'?\)?\.? See otpy demo --help",
    # targets
    ("run", ""): r"otpy run: '': expected module:attribute or path\.py:attribute",
    ("run", "a b"): r"otpy run: 'a b': expected module:attribute or path\.py:attribute",
    ("run", ".app"): r"otpy run: '\.app': expected module:attribute or path\.py:attribute",
    ("run", ":tree"): r"otpy run: ':tree': expected module:attribute or path\.py:attribute",
    (
        "run",
        "app:",
    ): r"otpy run: 'app:': '' is no attribute; expected module:attribute or path\.py:attribute",
    ("run", "app:1"): r"otpy run: 'app:1': '1' is no attribute; expected .*",
    (
        "run",
        "nix",
    ): r"otpy run: there is no module 'nix' here, nor installed; go to the directory .*",
    (
        "run",
        "nix.below",
    ): r"otpy run: there is no module 'nix' here, nor installed; go to the directory .*",
    ("run", "app.below"): r"otpy run: there is no module 'app.below' here, nor installed; .*",
    ("run", "nix.py"): r"otpy run: there is no Python file 'nix\.py'; expected .*",
    ("run", "./app"): r"otpy run: there is no Python file '\./app'; expected .*",
    (
        "run",
        "needs",
    ): r"otpy run: needs: ModuleNotFoundError: No module named 'there_is_no_such_module' \(\S+needs\.py:1\)"
    r"; --verbose shows the traceback",
    (
        "run",
        "syntax.py",
    ): r"otpy run: syntax\.py: SyntaxError: '\(' was never closed \(\S+syntax\.py:1\); --verbose .*",
    (
        "run",
        "wrong.py",
    ): r"otpy run: wrong\.py: otpy\.exceptions\.SpecError: a: intensity = -1: expected an int from 0 to 1000000000, "
    r"or 'infinity' \(\S+wrong\.py:2\); --verbose shows the traceback",
    ("check", "wrong"): r"otpy check: wrong: otpy\.exceptions\.SpecError: a: intensity = -1: .*",
    (
        "run",
        "with_trees",
    ): r"otpy run: with_trees has no attribute 'tree'; its trees are: some, other",
    (
        "run",
        "json",
    ): r"otpy run: json has no attribute 'tree'; there is no tree in it; otpy\.supervisor makes one",
    (
        "run",
        "app:number",
    ): r"otpy run: app:number: this is of type int; expected a tree, as otpy\.supervisor makes",
    (
        "run",
        "app:make_nothing",
    ): r"otpy run: app:make_nothing: this returns something of type NoneType; expected a tree, .*",
    (
        "run",
        "app:make_of",
    ): r"otpy run: app:make_of: cannot be called without arguments: missing .*'what'",
    (
        "run",
        "app:make_later",
    ): r"otpy run: app:make_later: this is an async function; expected a plain one .*",
    (
        "run",
        "app:crash",
    ): r"otpy run: app:crash: RuntimeError: two lines \(\S+app\.py:\d+\); --verbose shows .*",
    (
        "run",
        "app:note",
    ): r"otpy run: app:note: RuntimeError: what is wrong \(\S+app\.py:\d+\); --verbose shows .*",
    (
        "run",
        "app:leave",
    ): r"otpy run: app:leave: SystemExit: 3 \(\S+app\.py:\d+\); --verbose shows the traceback",
    (
        "run",
        "app:child",
    ): r"otpy run: app:child: this is a child without a supervisor; put it among the children .*",
}


@pytest.mark.parametrize("args", WRONG, ids=" ".join)
def test_what_is_wrong_is_told_in_one_line(call, args):
    done = call(*args)
    [line] = [line for line in done.stderr.splitlines() if line != "loaded"]

    assert re.fullmatch(WRONG[args], line)
    assert done.exit_code == 2


@pytest.mark.parametrize("name", ["run", "check", "show"])
def test_verbose_shows_the_traceback(call, name):
    done = call(name, "--verbose", "app:crash")

    assert done.exit_code == 2
    assert "Traceback (most recent call last):" in done.stderr
    assert "    raise RuntimeError" in done.stderr
    assert re.search(
        rf"^otpy {name}: app:crash: RuntimeError: two lines \(\S+\)$", done.stderr, re.MULTILINE
    )


def test_the_shell_completes_commands_and_values(app):
    def completed(words):
        count = str(len(words.split(" ")) - 1)
        done = otpy_process(
            cwd=app, _OTPY_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count
        )
        assert (done.returncode, done.stderr) == (0, "")
        return {line.partition(",")[2] for line in done.stdout.splitlines()}

    assert completed("otpy ") == set(otpy.list_commands(click.Context(otpy)))
    assert completed("otpy sh") == {"show"}
    assert completed("otpy show app --format m") == {"mermaid"}
    assert completed("otpy run app --re") == {"--reports"}


def test_the_shell_gets_its_script(app):
    done = otpy_process(cwd=app, _OTPY_COMPLETE="zsh_source")

    assert done.returncode == 0
    assert done.stdout.startswith("#compdef otpy")


PACKAGES = Path(sysconfig.get_path("purelib"))


@pytest.mark.parametrize(
    "there", [(), ("click",), ("rich",)], ids=["neither", "only click", "only rich"]
)
def test_without_the_extra_it_says_so_and_the_library_works(tmp_path, there):
    """In an interpreter that sees nothing but what otpy itself needs."""
    for name in ("attr", "attrs", "structlog", "typing_extensions.py", *there):
        if (PACKAGES / name).exists():
            (tmp_path / name).symlink_to(PACKAGES / name)

    def bare(*args):
        path = os.pathsep.join([str(tmp_path), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-S", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )

    for args in (
        ["-m", "otpy"],
        ["-m", "otpy", "demo"],
        ["-c", "from otpy.cli import main; main()"],
    ):
        done = bare(*args)
        assert done.returncode == 2
        assert done.stderr == "otpy's command line needs click and rich: pip install 'otpy[cli]'\n"
    assert bare("-c", "import otpy.check; otpy.run").returncode == 0
    assert (
        bare("-m", "otpy.lint", "--select", "OTP1", str(ROOT / "otpy" / "check.py")).returncode == 0
    )


def test_a_click_that_is_broken_is_not_called_missing(tmp_path):
    (tmp_path / "click.py").write_text("import there_is_no_such_module\n", "utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from otpy.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert "ModuleNotFoundError: No module named 'there_is_no_such_module'" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell that closes streams")
@pytest.mark.parametrize(
    ("args", "closed", "status"),
    [
        (("show", "nix"), "2>&-", 2),
        (("run", "app:failing"), "2>&-", 70),
        (("show", "app"), ">&-", 0),
    ],
)
def test_a_closed_stream_does_not_change_the_status(app, args, closed, status):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command(*args)],
        cwd=app,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
