"""The linter and its files: nothing in them crashes it."""

from __future__ import annotations

import re
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otpy import lint
from tests.lint.tools import POOL, ROOT, THREAD, checked, found

# Files


@pytest.mark.parametrize(
    ("content", "findings"),
    [
        (b"", []),
        (b"import threading\nthreading.Thread(\n", ["2:17 OTP901"]),
        (b"\xff", ["1:1 OTP901"]),
        (b"# coding: nonsense\n", ["1:1 OTP901"]),
        (b"# coding: rot13\n", ["1:1 OTP901"]),
        (b"# coding: ascii\nx = '\xe4'\n", ["1:1 OTP901"]),
        (b"# coding: latin-1\nimport threading\n'\xe4', threading.Thread()\n", ["3:6 OTP001"]),
        (b"\xef\xbb\xbfimport threading\nthreading.Thread()\n", ["2:1 OTP001"]),
        (b"import threading\rthreading.Thread()\r\n", ["2:1 OTP001"]),
        (b"x = 1\n\0", None),
        (b"(" * 5000, None),
        (b"-" * 200_000 + b"1", ["1:1 OTP901"]),
        (b"x" + b".y" * 200_000, ["1:1 OTP901"]),
        (
            b"x = '\\d'; assert (1, 2)\n",
            [],
        ),  # the parser warns of this, and warnings are errors here
        (b"import threading\n\\\n", None),
    ],
    ids=range(15),
)
def test_whatever_is_in_the_file(tmp_path, content, findings):
    """Where Python's versions differ in the place of an error, any place will do."""
    (path := tmp_path / "a.py").write_bytes(content)

    assert checked(path) == findings or (findings is None and checked(path)[0].endswith("OTP901"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"(", "'(' was never closed"),
        (b"# coding: ascii\n\xe4", "can't decode byte"),
        (b"# coding: rot13\n", "is not a text encoding"),
        (b"-" * 200_000 + b"1", "."),
        (b"(" * 100 + b"[" * 10_000, "."),
    ],
    ids=range(5),
)
def test_why_it_cannot_be_checked(tmp_path, content, why):
    (path := tmp_path / "a.py").write_bytes(content)
    [finding] = lint.check(str(path), lint.Config(tmp_path))

    assert re.fullmatch(
        f"cannot be checked: .*{re.escape(why) if why != '.' else why}.*", finding.message
    )


def test_depth_and_length_do_not_matter():
    """What the parser takes is checked, and in time that grows with the length only."""
    deep = "0" + "+(0" * 80 + ")" * 80
    chain = (
        "x = Thread\n"
        + "x = x.next()\nx()\n" * 2000
        + "".join(f"a{n + 1} = a{n}\n" for n in range(2000))
    )

    assert found(THREAD + f"Thread({deep})") == ["2:1 OTP001"]
    assert len(found(THREAD + "a0 = Thread\n" + chain + "a2000()")) == 2001


def test_what_cannot_be_read_is_a_finding(tmp_path):
    (tmp_path / "a.py").symlink_to(tmp_path / "nowhere.py")

    assert checked(tmp_path / "a.py") == ["1:1 OTP901"]


PIECES = [
    *"()[]:=,.@*\n\t #'\\\0é€",
    "\n    ",
    '"""',
    "import threading\n",
    "threading",
    "Thread",
    " as ",
    "T",
    "daemon",
]
PIECES += [
    "True",
    "class ",
    "def ",
    "lambda ",
    "for ",
    " in ",
    "return ",
    "with ",
    "Pool",
    POOL,
    THREAD,
    "# otpy: allow x",
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("lint") / "a.py"


@given(
    content=st.binary()
    | st.lists(st.sampled_from(PIECES)).map(lambda pieces: "".join(pieces).encode())
)
def test_nothing_crashes_it(scratch, content):
    scratch.write_bytes(content)

    for one in lint.check(str(scratch), lint.Config(scratch.parent)):
        assert one.line > 0 < one.col
        assert one.code in lint.RULES


def test_the_standard_library():
    """A quarter of it. What greps as a thread and is found; and nothing that cannot be read."""
    top = Path(sysconfig.get_path("stdlib"))
    files = [*sorted(top.glob("*.py"))[::4], *(top / "concurrent").rglob("*.py")]
    findings = [one for path in files for one in lint.check(str(path), lint.Config(ROOT))]

    assert len(files) > 40
    assert ("thread.py", "OTP001") in {(Path(one.path).name, one.code) for one in findings}
    assert [one for one in findings if one.code == "OTP901"] == []
    for one in findings:
        line = Path(one.path).read_text("utf-8").split("\n")[one.line - 1]
        assert re.search("thread|Timer|daemon|Executor", line, re.IGNORECASE), str(one)
