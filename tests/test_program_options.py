"""The options of programs: what is checked when a spec is made, and ``programs``."""

import pytest

import otpy
from otpy import (
    process,
)
from otpy.reports import Progress
from tests.helpers import wait_until


def test_programs_makes_a_supervisor_of_a_dict(launch, recorder, tmp_path):
    """Each command is a child with the common options, in the order of the dict."""
    commands = {"web": ["/bin/sh", "-c", "pwd >&2; exec sleep 1000"], "job": ["sleep", "1000"]}
    tree = otpy.programs(
        tmp_path, commands, err_dir="logs", restart="transient", supervision={"intensity": 9}
    )
    launch(tree)

    assert [child.id for child in tree.children] == ["web", "job"]
    assert (tree.id, tree.intensity) == ("programs", 9)
    assert tree.children[0].restart is otpy.Restart.TRANSIENT
    log = tmp_path / "logs" / "programs" / "web.stderr.log"
    wait_until(lambda: log.exists() and log.read_text().endswith(f"\n{tmp_path}\n"))
    assert recorder.wait_for(Progress, "programs/job")


def listener(line):
    return None


GOOD = {
    "args": ("node", "service.js"),
    "cwd": ".",
    "env": {"A": "b"},
    "stdout": listener,
    "err_dir": "logs",
    "stop_signal": "SIGINT",
    "success_codes": [0, 3],
    "ready": "listening",
    "health": otpy.Health(otpy.Port(80)),
}


def test_specs_of_equal_parts_are_equal():
    """Specs with equal options are equal, and others are not."""
    options = {name: value for name, value in GOOD.items() if name != "args"}

    assert process(*GOOD["args"], **options) == process(*GOOD["args"], **options)
    assert process(*GOOD["args"], **options) != process("node", "other.js", **options)
    assert process("/usr/bin/node").id == "node"


BAD = [
    # argv, options, field
    ([""], {}, "target"),
    ([3], {}, "target"),
    (["a", 3], {}, "args[0]"),
    (["a", "b\0"], {}, "args[0]"),
    (["a"], {"cwd": 3}, "cwd"),
    (["a"], {"env": ["A=b"]}, "env"),
    (["a"], {"env": {"A": 1}}, "env['A']"),
    (["a"], {"env": {"A=": "1"}}, "env"),
    (["a"], {"stdout": 3}, "stdout"),
    (["a"], {"stderr": lambda: None}, "stderr"),
    (["a"], {"err_dir": 3}, "err_dir"),
    (["a"], {"log_size": 0}, "log_size"),
    (["a"], {"log_backups": -1}, "log_backups"),
    (["a"], {"stop_signal": "TERM"}, "stop_signal"),
    (["a"], {"stop_signal": 1000}, "stop_signal"),
    (["a"], {"success_codes": 0}, "success_codes"),
    (["a"], {"success_codes": [256]}, "success_codes"),
    (["a"], {"ready": 80}, "ready"),
    (["a"], {"health": otpy.Port(80)}, "health"),
    (["a"], {"shutdown": -1}, "shutdown"),
    (["a"], {"id": "a/b"}, "id"),
    (["a"], {"id": "a\0b", "err_dir": "/tmp"}, "id"),
    (["a"], {"id": "\ud800", "err_dir": "/tmp"}, "id"),
    (["a"], {"stdout": "\ud800"}, "stdout"),
    (["a"], {"env": {"\ud800": ""}}, "env"),
]


@pytest.mark.parametrize(("argv", "options", "field"), BAD)
def test_what_is_wrong_is_refused_before_anything_starts(argv, options, field):
    """The SpecError names the field."""
    with pytest.raises(otpy.SpecError) as caught:
        process(*argv, **options)

    assert caught.value.field == field


@pytest.mark.parametrize(
    "commands", [["a"], {"a": "sleep 3"}, {"a": []}, {"a": None}, {"a": ["b", 1]}]
)
def test_a_dict_of_programs_is_checked(commands):
    """Each command must be a list: the program and its arguments."""
    with pytest.raises(otpy.SpecError):
        otpy.programs("/", commands)


def test_an_unknown_option_is_refused():
    """An unknown option is a TypeError, as for any Python function."""
    with pytest.raises(TypeError, match="unexpected keyword argument 'shell'"):
        process("a", shell=True)
