"""Every example runs, ends by itself, and does what it says."""

from __future__ import annotations

import contextlib
import html
import importlib.util
import re
import sqlite3
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import ModuleType

import pytest

from otpy import start, supervisor, thread
from tests.helpers import HANG, Puppet

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


def run_example(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *args]
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", timeout=2 * HANG, check=False
    )


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_has_a_test_here():
    here = Path(__file__).read_text()
    assert all(f'"{path.name}"' in here for path in EXAMPLES.glob("*.py"))


@pytest.fixture(scope="module")
def quickstart():
    """What the example has printed; it takes some seconds, so it is run once."""
    return run_example("quickstart.py")


def test_quickstart_crashes_and_recovers(quickstart):
    """Two of six numbers are none: two crashes, three lives, and all the others are squared."""
    done = quickstart

    assert done.returncode == 0, done.stderr
    assert re.findall(r"square, life (\d): (\d+)", done.stdout) == [
        ("1", "1"),
        ("1", "4"),
        ("2", "16"),
        ("3", "36"),
    ]
    assert done.stdout.count("child_terminated") == 2
    assert "invalid literal for int() with base 10: 'three'" in done.stdout
    assert "tick: all is well" in done.stdout
    assert done.stdout.splitlines()[-1] == "the end: shutdown: auto_shutdown"


def test_the_readme_shows_the_quickstart():
    """The README's only Python block is the example without its docstring."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    code = (EXAMPLES / "quickstart.py").read_text("utf-8").partition('"""\n\n')[2]

    assert blocks == [code]


def test_the_picture_of_the_readme_shows_what_the_quickstart_prints(quickstart):
    """Line by line, but for dates, frames, what is cut off ("…"), and how often the clock ticks meanwhile.

    If it does not: ``python docs/picture.py`` draws it anew.
    """
    svg = (ROOT / "docs" / "_static" / "quickstart.svg").read_text("utf-8")
    rows: dict[str, str] = {}
    for y, text in re.findall(r"<text [^>]*\by=\"([\d.]+)\"[^>]*>([^<]*)</text>", svg):
        rows[y] = rows.get(y, "") + html.unescape(text).replace("\xa0", " ")
    lines = ["".join(line.split()) for line in rows.values()]  # spaces are places in a picture
    shown = list(filter(None, lines[lines.index("$pythonexamples/quickstart.py") + 1 :]))
    undated = re.sub(r"^[\d-]+ [\d:]+ (?=\[)", "", quickstart.stdout, flags=re.MULTILINE)
    text = re.sub(r"^(Traceback .*\n)(?:  .*\n)+", r"\1…\n", undated, flags=re.MULTILINE)
    printed = text.replace(" ", "").splitlines()
    tick = "tick:alliswell"
    pattern = "\n".join(re.escape(line).replace("…", ".*") for line in shown if line != tick)

    assert tick in shown
    assert re.fullmatch(pattern, "\n".join(line for line in printed if line != tick))


def test_escalation_goes_up_to_the_root_and_out_of_the_program():
    done = run_example("escalation.py")

    assert done.returncode == 1
    assert re.findall(r"ESCALATION (\S+) gave up: (\S+)", done.stdout) == [
        ("shop/payments", "shop/payments/bank"),
        ("shop/payments", "shop/payments/bank"),
        ("shop", "shop/payments"),
    ]
    assert "  because shop/payments gave up: shop/payments/bank" in done.stdout
    assert "  goes to nobody: this is the root" in done.stdout
    assert done.stdout.count("connecting") == 6  # (1 start + 2 restarts) of the bank, twice
    assert "shop/counter: closed in order" in done.stdout
    assert "otpy.exceptions.TreeFailed: shop gave up" in done.stderr


def test_dynamic_children_come_and_go():
    done = run_example("dynamic.py")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "dora is refused: exchange/calls: the supervisor has as many children as max_children allows\n"
        "on the line: ada, brian, carol\n"
        "  brian hung up\n"
        "on the line: ada, carol, dora\n"
        "Counts(specs=3, active=3, supervisors=0, workers=3)\n"
    )
    assert set(re.findall(r"(\w+) hung up", done.stdout)) == {"ada", "brian", "carol", "dora"}
    assert done.stdout.endswith("closed: shutdown\n")


def test_health_finds_a_worker_that_hangs_and_replaces_it():
    """Each meter is read; the thread that hangs is named at the end."""
    done = run_example("health.py")

    assert done.returncode == 0, done.stderr
    assert re.findall(r"meter (\d) says (\d+)", done.stdout) == [
        (str(meter), str(20 + meter)) for meter in range(1, 6)
    ]
    assert "app/read has stalled at: answer.acquire()\n" in done.stdout
    assert "life 1: meter 3" not in done.stdout
    assert done.stdout.endswith("the end: shutdown: auto_shutdown\nleft behind: app/read\n")


def test_pipeline_builds_and_tries_again():
    """Nine steps and more; the first upload breaks off."""
    done = run_example("pipeline.py")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    steps = [line.split(maxsplit=1)[1] for line in lines if line.startswith(" passed ")]
    modules = sum(step.startswith("compile ") for step in steps)
    assert modules >= 5
    assert steps.index("pack") == modules
    assert set(steps[modules + 1 :]) == {"check", "sign", "upload", "lint", "announce"}
    assert f"{modules} modules are released" in lines
    assert re.fullmatch(
        rf"{modules + 6} passed, 0 failed, 0 skipped in \d+\.\ds and 2 uploads", lines[-1]
    )


def test_pipeline_skips_what_comes_after_a_failure():
    done = run_example("pipeline.py", "--longest", "40")

    assert done.returncode == 1, done.stderr
    assert " failed lint\nskipped announce\n" in done.stdout.replace(" passed sign\n", "").replace(
        " passed upload\n", ""
    )
    assert "lint: lines are too long in __init__.py" in done.stdout
    assert run_example("pipeline.py", "--mermaid").stdout.startswith("flowchart TD\n")


def test_ingest_loses_nothing_in_hundreds_of_crashes():
    done = run_example("ingest.py", "--limit", "150", "--chaos", "200", "--seed", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("equal to the sequential run")
    assert "NOT" not in done.stdout
    files, crashes = re.search(
        r"^(\d+) files, .* (\d+) crashes;", done.stdout, re.MULTILINE
    ).groups()
    assert int(files) == 150
    assert 100 <= int(crashes) <= 200
    assert done.stderr == ""


def test_ingest_indexes_any_directory_and_keeps_the_database(tmp_path):
    """Also files whose text is not what they promise, and without any chaos."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("one two two\n")
    (tmp_path / "sub" / "b.py").write_bytes(b"\xff\xfe three\n\n")
    (tmp_path / "c.py").write_text("")
    done = run_example("ingest.py", str(tmp_path), "--database", str(tmp_path / "index.sqlite"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 files, 3 lines, 4 words, 3 distinct; 0 crashes;" in done.stdout
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as db:
        words = db.execute("SELECT * FROM words ORDER BY name, word").fetchall()
    assert words == [("a.py", "one", 1), ("a.py", "two", 2), ("sub/b.py", "three", 1)]


def test_ingest_refuses_a_directory_without_files(tmp_path):
    done = run_example("ingest.py", str(tmp_path))

    assert done.returncode == 2
    assert "there are no Python files" in done.stderr


def test_ingest_notices_a_wrong_count(tmp_path, capsys, monkeypatch):
    """The proof can fail: here the tree counts one line too many."""
    ingest = load("ingest")
    (tmp_path / "a.py").write_text("one\n")
    save = ingest.save
    monkeypatch.setattr(
        ingest, "save", lambda db, name, lines, words: save(db, name, lines + 1, words)
    )

    assert not ingest.ingest(tmp_path, ["a.py"], tmp_path / "index.sqlite", 0, None)
    assert "NOT EQUAL to the sequential run" in capsys.readouterr().out


def test_ingest_has_a_status_page(tmp_path, capsys):
    ingest = load("ingest")
    database = tmp_path / "index.sqlite"
    with ingest.connect(database) as db:
        db.executescript(ingest.SCHEMA)
    puppet = Puppet()
    parsing = supervisor("parsing", children=[puppet.spec("parser-1")], intensity=7)
    status = thread(ingest.Status, database, 42, id="status")
    with start(supervisor("ingest", children=[status, parsing]), log=False):
        puppet.next().crash()
        puppet.next()
        url = re.search(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out)[0]
        with urllib.request.urlopen(url, timeout=HANG) as answer:
            page = answer.read().decode().splitlines()

    assert page == [
        "0 of 42 files are written",
        "",
        "ingest: one_for_one, 3 restarts left",
        "  status: running, life 1, last exit: None",
        "  ingest/parsing: one_for_one, 6 restarts left",
        "    parser-1: running, life 2, last exit: crashed: RuntimeError('ordered to crash')",
    ]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=HANG)


def test_services_survive_chaos():
    """Each kill restarts what comes after; nothing is left in the end."""
    done = run_example("services.py", "--chaos", "3")
    ends = re.findall(
        r"(\d) times services/(?:writer|server): crashed: killed by SIGKILL", done.stdout
    )
    lives = {int(life) for life in re.findall(r"client, life (\d): news", done.stdout)}

    assert done.returncode == 0, done.stderr
    assert "killed 3 times" in done.stdout
    assert 1 <= sum(map(int, ends)) <= 3
    assert 2 <= len(lives) <= 4
