"""How the command line finds a tree: a module, a file, a function."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.cli.tools import APP, HANG, command, environment, otpy_process

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
