"""The command line: each command by click's runner and as a process of its own, and what it costs nobody."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
import structlog
from click.testing import CliRunner

from otpy.cli import demo, reference
from otpy.cli.group import COMMANDS, otpy
from tests import pages

ROOT = Path(__file__).parent.parent
HANG = 50

APP = """
from otpy import Backoff, dynamic_supervisor, periodic, supervisor, thread

print("loaded")


def polite(ctx):
    print("up", flush=True)
    ctx.wait_stop()
    print("down", flush=True)


def once(ctx):
    ctx.log.info("hello", answer=42)


def broken(ctx):
    raise ConnectionError("no network")


def tidy():
    pass


tree = supervisor("app", children=[thread(polite)])
ending = supervisor(
    "app", children=[thread(once, restart="transient", significant=True)], auto_shutdown="any_significant"
)
failing = supervisor("app", intensity=1, children=[thread(broken)])
unready = supervisor("app", children=[thread(broken, ready=True)])
wide = supervisor(
    'the "app"',
    strategy="rest_for_one",
    children=[
        thread(polite, heartbeat=30, backoff=Backoff(1, 30), purpose="says <hello>"),
        periodic(tidy, restart="transient"),
        dynamic_supervisor("pool", max_children=7),
    ],
)
worst = supervisor("app", children=[thread(polite, backoff=Backoff(1, 30))])
number = 42


class space:
    tree = tree


def make():
    return supervisor("made", children=[thread(polite)])


def make_nothing():
    return None


def make_of(what):
    return what


async def make_later():
    return tree


def crash():
    raise RuntimeError("two\\nlines")


def note():
    error = RuntimeError("what is wrong")
    error.add_note("and a note")
    raise error


def leave():
    raise SystemExit(3)


def child():
    return thread(polite)
"""


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


def command(*args):
    return [sys.executable, "-P", "-W", "error", "-m", "otpy", *args]


def environment(**more):
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def otpy_process(*args, cwd, **options):
    return subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(**options),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )


def start_process(*args, cwd, **options):
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*args), cwd=cwd, env=environment(), stdout=pipe, stderr=pipe, text=True, **options
    )


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


# Targets


@pytest.mark.parametrize(
    ("target", "root"),
    [
        ("app", "app"),
        ("app:tree", "app"),
        ("app:make", "made"),
        ("app:space.tree", "app"),
        ("app.py", "app"),
        ("./app.py:make", "made"),
        ("with_trees:some", "made"),
        ("with_trees.py:other", "made"),
    ],
)
def test_a_target_is_found(call, target, root):
    done = call("show", "--format", "text", target)

    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"{root}: supervisor")


def test_a_file_is_found_from_anywhere_with_the_modules_beside_it(app, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = otpy_process("show", "--format", "text", f"{app}/with_trees.py:some", cwd=elsewhere)

    assert (done.returncode, done.stderr) == (0, "loaded\n")
    assert done.stdout.splitlines()[0] == "made: supervisor, one_for_one, 3 restarts in 5 s"


def test_a_file_does_not_replace_a_module_of_its_name(app):
    """What is called re.py is loaded under another name: the re that is there already stays."""
    (app / "re.py").write_text(f"import re\nre.compile('')\n{APP}", "utf-8")
    done = otpy_process("check", "re.py", cwd=app)

    assert done.returncode == 0, done.stderr


def test_a_module_is_looked_for_in_the_current_directory_first(call, app):
    """As by ``python -m``: one of the same name that is installed does not hide it."""
    (app / "wave.py").write_text("from app import make\ntree = make()\n", "utf-8")
    assert "wave" not in sys.modules

    assert call("show", "--format", "text", "wave").stdout.startswith("made: supervisor")


@pytest.mark.parametrize("target", ["main", "main.py"])
def test_what_a_target_does_as_the_main_module_is_not_run(call, app, target):
    """Else the tree would be run twice, or by a command that only looks at it."""
    (app / "main.py").write_text(
        "from app import make\ntree = make()\nif __name__ == '__main__':\n    raise RuntimeError\n",
        "utf-8",
    )

    assert call("check", target).exit_code == 0


@pytest.mark.parametrize("name", ["run", "check", "show"])
def test_ctrl_c_while_a_target_is_loaded_ends_with_130(call, app, name):
    """There is no tree yet that could be stopped."""
    (app / "late.py").write_text("raise KeyboardInterrupt\n", "utf-8")
    done = call(name, "late")

    assert done.exit_code == 130
    assert "Traceback" not in done.stderr


def test_a_target_may_have_its_own_handler_of_sigusr2():
    """Only where there is none, the signal has files opened anew."""
    from otpy.cli import run

    def own(*_):
        raise AssertionError

    before = signal.signal(signal.SIGUSR2, own)
    try:
        run.listen_for_rotation()
        assert signal.getsignal(signal.SIGUSR2) is own
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        run.listen_for_rotation()
        assert signal.getsignal(signal.SIGUSR2) not in (own, signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    "args", [["check", "app.py"], ["show", "with_trees:some"], ["run", "app.py:ending"]]
)
def test_nothing_is_written(app, args):
    """No bytecode beside a target, nothing else in the current directory."""
    before = sorted(app.rglob("*"))
    done = subprocess.run(
        command(*args),
        cwd=app,
        env={
            name: value
            for name, value in environment().items()
            if name != "PYTHONDONTWRITEBYTECODE"
        },
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(app.rglob("*")) == before


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


def test_lint_is_the_guard(app):
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
