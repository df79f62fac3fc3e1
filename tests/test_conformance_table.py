"""The conformance table of docs/explanation/otp.md and the tests in tests/conformance speak of the same tests."""

import ast
import collections
import functools
import pathlib
import re

import attrs
import pytest

from tests import pages

ROOT = pathlib.Path(__file__).parent.parent
PAGE = pages.read("otp.md")
NOT_IN_THE_TABLE = {"test_vectors.py"}


@attrs.frozen
class Row:
    case: str
    verdict: str
    last: str

    @property
    def tests(self):
        """The tests that the row names, as "file::function"."""
        return re.findall(r"\w+\.py::\w+", self.last)


@functools.cache
def table():
    lines = [
        line for line in PAGE.partition("## Conformance")[2].splitlines() if line.startswith("| ")
    ]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines[1:]]


@functools.cache
def written():
    """Return the tests that exist, with their docstrings."""
    return {
        f"{path.name}::{node.name}": ast.get_docstring(node)
        for path in (ROOT / "tests" / "conformance").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_the_table_and_the_tests_agree():
    """Each test that the table names exists, and each test is in the table once."""
    named = [test for row in table() for test in row.tests]

    assert sorted(named) == sorted(
        test for test in written() if test.split("::")[0] not in NOT_IN_THE_TABLE
    )


@pytest.mark.parametrize("row", table(), ids=lambda row: row.case)
def test_each_case_has_a_verdict(row):
    """A case that applies names its test, which is named after it; one that does not gives a reason."""
    verdict = row.verdict.partition(":")[0]
    number = re.match(r"gap (\d+):", row.case)
    prefix = f"test_gap_{int(number[1]):02}_" if number else f"test_{row.case}"

    assert verdict in ("yes", "partly", "no")
    assert bool(row.tests) == (verdict != "no")
    assert all(test.partition("::")[2].startswith(prefix) for test in row.tests)
    assert row.last
    assert ":" in row.verdict or verdict != "partly"


@pytest.mark.parametrize("row", [row for row in table() if row.tests], ids=lambda row: row.case)
def test_a_case_is_partly_kept_exactly_if_a_test_of_it_adapts(row):
    """A test that adapts OTP's case says "Adapted:", and then the table may not say "yes"."""
    docstrings = written()
    adapts = any("Adapted:" in docstrings[test] for test in row.tests)

    assert row.verdict.startswith("partly:") == adapts


def test_the_page_names_the_release_of_otp():
    """A reader must know which suite, and which rules, the table speaks of."""
    head = PAGE.partition("## Conformance")[2].partition("\n| case |")[0]

    assert re.search(r"`supervisor_SUITE`, as it was in OTP \d+", head)


def test_each_test_states_its_rule():
    """Each conformance test has a docstring."""
    assert [name for name, docstring in written().items() if not docstring] == []


def test_the_verdicts_are_counted():
    """The page gives the numbers of the table."""
    count = collections.Counter(row.verdict.partition(":")[0] for row in table())

    assert f"In all {count['yes']} yes, {count['partly']} partly, {count['no']} no." in PAGE
    assert len({row.case for row in table()}) == 93 + 10
