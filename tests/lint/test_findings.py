"""What the linter finds and where, and what it lets pass."""

from __future__ import annotations

import re

import pytest

from tests.lint.tools import FINE, FOUND, POOL, ROWS, THREAD, found

ALLOWED = {
    # where the comment is: (source, findings)
    "in the line": (THREAD + "Thread()  # otpy: allow it is short", []),
    "with a dash": (THREAD + "Thread()  # otpy: allow - it is short", []),
    "with an issue": (THREAD + "Thread()  # otpy: allow #12", []),
    "without a space": (THREAD + "Thread()  #otpy:allow: it is short", []),
    "after another comment": (THREAD + "Thread()  # noqa: S1  # otpy: allow it is short", []),
    "before another comment": (THREAD + "Thread()  # otpy: allow it is short  # noqa: S1", []),
    "two at once": (THREAD + "Thread(daemon=True)  # otpy: allow it is short", []),
    "in the first line": (
        THREAD + "t = Thread(  # otpy: allow it is short\n  target=f,\n  daemon=True,\n)",
        [],
    ),
    "in the last line": (
        THREAD + "t = Thread(\n  target=f,\n  daemon=True,\n)  # otpy: allow it is short",
        [],
    ),
    "in the line of one": (
        THREAD + "t = Thread(\n  daemon=True,  # otpy: allow it is short\n)",
        ["2:5 OTP001"],
    ),
    "in the line of one of two": (
        THREAD + "[\n  Thread(),  # otpy: allow it is short\n  Thread(),\n]",
        ["4:3 OTP001"],
    ),
    "in a class's line": (
        THREAD + "class A(Thread):  # otpy: allow it is short\n    daemon = True",
        ["3:5 OTP102"],
    ),
    "in the first line of a with": (
        POOL + "with f(  # otpy: allow it ends\n  Pool()\n): Pool()",
        ["4:4 OTP005"],
    ),
    "in the last line of a body": (
        THREAD + "if Thread():\n    f()  # otpy: allow no",
        ["2:4 OTP001", "3:10 OTP903"],
    ),
    "in the last line of a match": (
        THREAD + "match Thread():\n    case x: f()  # otpy: allow no",
        ["2:7 OTP001", "3:18 OTP903"],
    ),
    "in the line before": (THREAD + "# otpy: allow no\nThread()", ["2:1 OTP903", "3:1 OTP001"]),
    "in a string": (THREAD + "Thread('# otpy: allow no')", ["2:1 OTP001"]),
    "in a string of many lines": (THREAD + "Thread('''\n# otpy: allow no\n''')", ["2:1 OTP001"]),
    "quoted": (THREAD + "Thread()  # write '# otpy: allow reason'", ["2:1 OTP001"]),
    "misspelt": (THREAD + "Thread()  # otpy: allowed, I hope", ["2:1 OTP001"]),
    "without a reason": (THREAD + "Thread()  # otpy: allow", ["2:1 OTP001", "2:11 OTP902"]),
    "without a word": (THREAD + "Thread()  # otpy: allow -- :", ["2:1 OTP001", "2:11 OTP902"]),
    "without a reason, with a comment": (
        THREAD + "Thread()  # otpy: allow  # noqa",
        ["2:1 OTP001", "2:11 OTP902"],
    ),
    "in the line of the call": (
        THREAD + "[\n  Thread(  # otpy: allow it is short\n    daemon=True,\n  ),\n  Thread(),\n]",
        ["6:3 OTP001"],
    ),
    "left over": ("x = 1  # otpy: allow it is short", ["1:8 OTP903"]),
    "left over, without a reason": ("x = 1  # otpy: allow", ["1:8 OTP902"]),
    "for what is allowed": (
        "from threading import Timer\nTimer(1, f)  # otpy: allow it is short",
        ["2:14 OTP903"],
    ),
}


@pytest.mark.parametrize(("source", "findings"), FOUND.values(), ids=FOUND)
def test_what_is_found(source, findings):
    assert found(source) == findings


@pytest.mark.parametrize("source", FINE.values(), ids=FINE)
def test_what_is_fine(source):
    assert found(source) == []


@pytest.mark.parametrize(("source", "findings"), ALLOWED.values(), ids=ALLOWED)
def test_what_a_comment_allows(source, findings):
    assert found(source) == findings


@pytest.mark.parametrize(
    ("source", "findings"),
    [
        ("import threading\nthreading.Timer(1, f)", ["2:1 OTP004"]),
        ("from threading import Timer as T\nclass U(T): pass\nU(1, f)", ["2:9 OTP004"]),
        ("from threading import Timer\nTimer(1, f)  # otpy: allow it is short", []),
    ],
)
def test_timers_can_be_found(source, findings):
    assert found(source, allow_timer=False) == findings


@pytest.mark.parametrize("source", [source for source, _ in ROWS.values()], ids=ROWS)
def test_comments_and_strings_do_not_count(source):
    assert found("\n".join(f"# {line}" for line in re.split("[\r\n]+", source))) == []
    assert found(f"import threading\nx = {source!r}\n") == []


@pytest.mark.parametrize(("source", "findings"), ROWS.values(), ids=ROWS)
def test_what_is_around_it_does_not_matter(source, findings):
    """The same one block deeper: each finding one line further down and four columns to the right."""
    body = re.sub(r"^(?=[^\n])", "    ", re.sub("\r\n?", "\n", source), flags=re.MULTILINE)
    moved = [
        re.sub(r"(\d+):(\d+)", lambda at: f"{int(at[1]) + 1}:{int(at[2]) + 4}", one)
        for one in findings
    ]

    if '"""' not in source and "\x0c" not in source:
        assert found(f"if x:\n{body}\n    pass") == moved
        assert found(f"while x:\n{body}\n    pass") == moved
