"""The linter on this repository, and its page in the docs."""

from __future__ import annotations

import re
from pathlib import Path

from otpy import lint
from tests import pages
from tests.lint.tools import ROOT, checked

# This repository


def test_this_repository_keeps_its_own_rules(run, monkeypatch):
    """All of it, with the exemptions in its pyproject.toml."""
    monkeypatch.chdir(ROOT)

    assert run(
        *(
            name
            for name in ("otpy", "tests", "examples", "benchmarks", "noxfile.py")
            if Path(name).exists()
        )
    ) == (0, [], [])


def test_only_two_modules_of_ours_need_an_exemption():
    """The one that starts threads, and what runs in a process of its own."""
    findings = [
        one
        for path in lint.files([ROOT / "otpy"])
        for one in lint.check(str(path), lint.Config(ROOT))
    ]

    found = sorted((Path(one.path).name, one.code) for one in findings)
    assert found == [("far_side.py", "OTP001"), ("threads.py", "OTP002")]


PAGE = pages.read("lint.md")


def test_the_page_has_every_rule_and_key():
    assert re.findall(r"^\| \[`(OTP\d+)`\]", PAGE, re.MULTILINE) == list(lint.RULES)
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == list(lint.KEYS)


def test_the_examples_of_the_page_are_right(tmp_path):
    """Each line of its code is found to break the rules that it bears, and no others."""
    code = "".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    (tmp_path / "page.py").write_text(code, "utf-8")
    borne = {
        f"{n} {rule}"
        for n, line in enumerate(code.split("\n"), 1)
        for rule in re.findall(r"OTP\d+", line)
    }
    findings = {
        re.sub(r":\d+", "", one) for one in checked(tmp_path / "page.py", allow_timer=False)
    }

    assert findings == borne
    assert {rule.split()[1] for rule in borne} == {
        rule for rule in lint.RULES if not rule.startswith("OTP9")
    }
