"""Text from children, files and command lines is data: no terminal obeys it.

And no secret is shown unasked.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner

import otpy
from otpy import lint, process, registry, supervisor
from otpy.cli import run as cli_run
from otpy.cli.group import otpy as group
from otpy.exceptions import in_one_line, printable
from otpy.reports import ChildTerminated, OutputLost, Stalled
from otpy.runtime import log
from tests.helpers import wait_until
from tests.programs import sh

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b2J\x7f\r\x08\u202edrawkcab\u2066"
SEEN = r"\x1b]0;owned\x07\x1b[2J\x9b2J\x7f\r\x08\u202edrawkcab\u2066"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def is_clean(text):
    """Whether a terminal obeys nothing in *text* but newlines and tabs."""
    return OBEYED.search(text) is None


# The one place


def test_what_a_terminal_would_obey_is_shown_as_text():
    """Control characters of both sets, marks that turn the text around, and lone
    surrogates are escaped.
    """
    everything = "".join(map(chr, range(0x3000)))

    assert printable(EVIL) == in_one_line(EVIL) == SEEN
    assert is_clean(printable(everything))
    assert is_clean(in_one_line(everything))
    assert printable("\ud800") == "\\ud800"


@pytest.mark.parametrize(
    "text",
    ["", "a\n\tb\n", "é日本　語 ", "\U0001f469\u200d\U0001f4bb", "C:\\new\\x1b", "\u05d0\u200f!"],
)
def test_text_of_people_stays_as_it_is(text):
    """Newlines, tabs, and letters and signs of all languages are not changed."""
    assert printable(text) == text


def test_in_one_line_there_is_one_line():
    """Newlines and tabs are escaped, too."""
    assert in_one_line("a\n\tb\u2028c") == "a\\n\\tb\\u2028c"


def test_lines_of_other_systems_are_lines():
    """CR LF becomes a newline."""
    assert printable("one\r\ntwo\r\n") == "one\ntwo\n"


# What a program has written


@pytest.fixture
def evil_program():
    """Writes to stderr what a terminal would obey, and crashes."""
    return sh(f"printf '%s' '{EVIL}' >&2; exit 3")


def test_the_last_words_of_a_program_are_clean_wherever_they_are_shown(
    launch, recorder, evil_program, capsys
):
    """The traceback, the note and the log are clean; the reason has the bytes."""
    app = launch(supervisor("app", children=[evil_program], intensity=0), log=True)
    reason = recorder.wait_for(ChildTerminated).reason
    app.stop()

    assert SEEN in reason.traceback
    assert reason.exception.__notes__ == [SEEN]
    assert reason.detail.stderr.decode() == EVIL
    out = capsys.readouterr().out
    assert SEEN in out
    assert is_clean(re.sub(r"\x1b\[\d*m", "", out))  # the console renderer's own colours


def test_the_log_of_a_program_of_the_users_is_clean(launch, recorder, capsys):
    """Without ``otpy run`` structlog prints ids, details and names of files as it gets
    them.
    """
    bare = "\x1b[2J\x9b"  # the renderer itself escapes all of a text with a space or a newline
    launch(
        supervisor(
            "app", children=[sh("echo x", id=f"a{bare}", stdout=f"/dev/full/{bare}")], intensity=0
        ),
        log=True,
    )
    recorder.wait_for(OutputLost)
    log.complain("event", ValueError(EVIL), path=bare)
    said = ""

    def has_said_it():
        nonlocal said
        said += capsys.readouterr().out
        return "output_lost" in said and "event" in said

    wait_until(has_said_it)

    assert SEEN in said
    assert is_clean(re.sub(r"\x1b\[\d*m", "", said))


def test_the_stack_of_a_program_that_stalls_is_clean(launch, recorder):
    """The report Stalled has the last words of the program as text."""
    launch(
        supervisor(
            "app",
            children=[sh(f"printf '%s\\n' '{EVIL}' >&2; exec sleep 1000", heartbeat=0.3)],
            intensity=0,
        )
    )

    assert SEEN in recorder.wait_for(Stalled).stack


def test_a_crash_that_ends_run_prints_nothing_that_a_terminal_obeys():
    """If ``otpy.run`` raises, the interpreter itself prints the failure, its cause and
    its notes.
    """
    from tests.seams import kit

    source = f"""
    from otpy import process, run, supervisor
    run(supervisor("app", children=[process("printf", "%s", {EVIL!r}, id="x")], intensity=0))
    """
    evil = source.replace(
        'process("printf", "%s", ', 'process("sh", "-c", "printf %s \\"$0\\" >&2; exit 3", '
    )
    ran = kit.python(evil, expect=1)

    assert SEEN in ran.err
    assert is_clean(ran.err)


# What the commands print

APP = f"""
import sys
from otpy import dynamic_supervisor, process, supervisor, thread
from otpy.taskgraph import task
EVIL = {EVIL!r}

def job(ctx): pass
def logs(ctx):
    class Odd:
        def __repr__(self): return EVIL
    ctx.log.info(EVIL, text=EVIL, odd=Odd(), many=[EVIL], number=3, **{{EVIL: 1}})
    try:
        raise ValueError(EVIL)
    except ValueError:
        ctx.log.error("caught", exc_info=True)
tree = supervisor("evil" + EVIL, children=[thread(job, id="a" + EVIL, purpose=EVIL)])
bad = supervisor("app", intensity=0, children=[process("sh", "-c", 'printf %s "$0" >&2; exit 3', EVIL, id="bad")])
ends = supervisor(
    "app", auto_shutdown="any_significant", children=[thread(logs, restart="transient", significant=True)]
)
found = dynamic_supervisor("pool" + EVIL)
def make(): raise ValueError(EVIL)

@task(name="t" + EVIL)
def one():
    raise ValueError("bad " + EVIL)

def setup_state(state):
    state.update(pwd="hunter1", auth="hunter2", url="postgres://u:hunter3@h/db", visible="hunter4", **{{EVIL: 1}})
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the command line in this process; return its status, and both of its outputs."""
    import sys

    (tmp_path / "app.py").write_text(APP, "utf-8")
    (tmp_path / f"raw{EVIL}\n.py").write_text("import threading\nthreading.Thread()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def invoke(*args):
        done = CliRunner().invoke(group, args, prog_name="otpy")
        return done.exit_code, done.stdout + done.stderr

    yield invoke
    structlog.reset_defaults()
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == tmp_path:
            del sys.modules[name]


CALLS = {
    # the call: its status
    ("show", "app.py"): 0,
    ("show", "app.py", "--format", "text"): 0,
    ("show", "app.py", "--format", "json"): 0,
    ("show", "app.py", "--format", "mermaid"): 0,
    ("show", "app.py", "--format", "dot"): 0,
    ("check", "app.py:found"): 0,
    ("check", "app.py:found", "--json"): 0,
    ("check", "app.py:make"): 2,
    ("check", "app.py:make", "--verbose"): 2,
    ("check", f"{EVIL}.py"): 2,
    ("lint", "."): 1,
    ("lint", f"raw{EVIL}\n.py"): 1,
    ("lint", EVIL): 2,
    ("lint", "--config", EVIL, "."): 2,
    ("lint", "--select", EVIL, "."): 2,
    ("tasks", "app.py"): 1,
    ("tasks", "app.py", "--graph"): 0,
    ("tasks", "app.py", "--log"): 1,
    ("tasks", "app.py", "--show-state"): 1,
    ("tasks", "app.py", "--show-values"): 1,
    ("tasks", "app.py", f"--{EVIL}=1"): 1,
    (f"{EVIL}",): 2,
    ("run", "app.py:ends"): 0,
    ("run", "app.py:ends", "--log-format", "json"): 0,
    ("run", "app.py:bad"): 70,
    ("run", "app.py:bad", "--verbose"): 70,
}


@pytest.mark.parametrize("args", CALLS, ids=lambda args: ascii(" ".join(args)))
def test_no_command_prints_what_a_terminal_obeys(call, args):
    """Names, errors, ids, purposes, keys, logs and the command line itself may hold
    anything.
    """
    status, text = call(*args)

    assert status == CALLS[args]
    assert "owned" in text
    assert is_clean(text)
    if args[-1] in ("json", "--json"):
        assert "owned" in repr(
            [json.loads(line) for line in text.splitlines()]
            if args[0] == "run"
            else json.loads(text)
        )


def test_the_guard_by_itself_prints_nothing_that_a_terminal_obeys(capsys):
    """``otpy.lint`` run by itself cleans its usage errors."""
    with pytest.raises(SystemExit):
        lint.main([f"--{EVIL}", "."])
    text = capsys.readouterr().err

    assert "owned" in text
    assert is_clean(text)


def test_the_demo_shows_paths_and_purposes_as_text():
    """The tree of the demo is harmless; its drawing would show any tree."""
    from rich.console import Console

    from otpy.cli.demo import Picture

    picture = Picture(supervisor("app", children=[sh("exit", id=f"a{EVIL}", purpose=EVIL)]))
    console = Console(width=500, force_terminal=False)
    with console.capture() as captured:
        console.print(picture.draw())

    assert SEEN in captured.get()
    assert is_clean(captured.get())


def test_one_module_prints_for_all_commands():
    """No other module in ``otpy.cli`` writes to a stream, so no text gets there
    uncleaned.
    """
    direct = re.compile(r"click\.(secho|echo)|\bprint\(|std(out|err)\.write")
    modules = [
        one
        for one in Path(cli_run.__file__).parent.glob("*.py")
        if one.name not in ("terminal.py", "__init__.py")
    ]
    found = {
        one.name
        for one in modules
        if any(
            direct.search(ast.unparse(node))
            for node in ast.walk(ast.parse(one.read_text()))
            if isinstance(node, ast.Call)
        )
    }

    assert found == {"show.py"}  # console.print of rich, with labels in one line


def test_the_table_of_threads_is_clean(launch):
    """Names, purposes, and the source lines in the stacks are cleaned."""
    launch(
        supervisor(
            "app", children=[otpy.thread(lambda ctx: ctx.wait_stop(), id=f"a{EVIL}", purpose=EVIL)]
        )
    )
    wait_until(lambda: SEEN in registry.dump_status())

    assert is_clean(registry.dump_status(stacks=True))


# Secrets


def test_show_state_shows_names_and_types_and_no_value(call):
    """``--show-state`` prints the type and the length of a value."""
    _, text = call("tasks", "app.py", "--show-state")

    assert "  visible: str, 7\n" in text
    assert "  pwd: str, 7\n" in text
    assert "hunter" not in text


def test_show_values_shows_values_but_for_what_sounds_like_a_secret(call):
    """``--show-values`` hides keys such as ``pwd``, and passwords in addresses."""
    _, text = call("tasks", "app.py", "--show-values")

    assert "  visible = 'hunter4'\n" in text
    assert not re.search("hunter[123]", text)


def test_the_environment_of_a_program_is_shown_without_its_values():
    """Errors, logs and debuggers show the ``repr`` of a spec. Specs with other values
    differ all the same.
    """
    spec = process("x", env={"DB_PASSWORD": "hunter1"})

    assert "DB_PASSWORD" in repr(spec)
    assert "hunter1" not in repr(spec)
    assert spec != process("x", env={"DB_PASSWORD": "hunter2"})
    assert "env=None" in repr(process("x"))


@pytest.mark.parametrize(
    "env",
    [
        {"PASSWORD": b"hunter1"},
        {"PASSWORD": "hunter1\0"},
        {"PASSWORD": 0x6875},
        ["PASSWORD=hunter1"],
        "PASSWORD=hunter1",
        {"PASSWORD=hunter1": "x"},
    ],
)
def test_an_environment_is_refused_without_its_values(env):
    """Errors are logged, so the error shows the type of a value only."""
    with pytest.raises(otpy.SpecError) as caught:
        process("x", env=env)
    assert caught.value.field.startswith("env")
    assert not re.search("hunter1|26741", f"{caught.value} {caught.value.args!r}")


def test_an_address_is_refused_without_its_password():
    """The password would not be sent, but printed wherever the spec is printed."""
    with pytest.raises(
        otpy.SpecError, match=r"'http://\*\*\*@localhost/x': expected a URL without a user"
    ) as caught:
        otpy.Http("http://me:hunter1@localhost/x")
    assert "hunter1" not in repr(caught.value.args)


def test_values_of_the_state_are_shown_without_their_own_code(tmp_path, call):
    """A class derived from dict or list may raise; a secret in it stays hidden."""
    Path("odd.py").write_text("""
from otpy.taskgraph import task
class Odd(dict):
    def items(self): raise SystemExit(3)
class List(list):
    def __iter__(self): raise SystemExit(3)
class Key(str):
    def startswith(self, *args): raise SystemExit(3)
    def __format__(self, spec): raise SystemExit(3)
@task(with_state=True)
def one(state):
    state.update(odd=Odd(password="hunter1", many=List([1, 2])))
    state[Key("key")] = 3
""")
    status, text = call("tasks", "odd.py", "--show-values")
    assert (status, "  key = 3\n" in text) == (0, True)
    assert "  odd = {password: ***, many: [1, 2]}\n" in text


def test_a_state_that_a_stuck_task_still_changes_is_shown(tmp_path, call):
    """A task may go on after its time limit; the output shows the state of one moment."""
    Path("stuck.py").write_text("""
import threading, time
from otpy.taskgraph import task
@task(with_state=True, timeout=0.05)
def one(state):
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        for number in range(2000):
            state[number] = number
        for number in range(2000):
            del state[number]
""")
    status, text = call("tasks", "stuck.py", "--show-state")
    assert status == 1
    assert text.endswith("s ====\n")


def test_what_stands_for_an_exception_of_another_process_is_clean():
    """Python itself may print it, at the end of a process."""
    error = otpy.RemoteError(f"app.{EVIL}", EVIL)
    assert str(error) == f"app.{SEEN}: {SEEN}"
    assert error.message == EVIL


def test_reports_as_json_are_clean_by_their_form(tmp_path, call):
    """JSON itself escapes control characters; the text is that of the exception."""
    call("run", "app.py:bad", "--reports", "reports")
    text = Path("reports").read_text()

    assert is_clean(text)
    assert any(
        SEEN in json.loads(line)["reason"]["traceback"]
        for line in text.splitlines()
        if json.loads(line)["reason"]
    )
