"""The words of otpy: one word has one meaning, and sentences name their subjects."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

import otpy
from tests import pages

PACKAGE = Path(otpy.__file__).parent
CHANGELOG = pages.find("changelog.md")  # it tells of old names

FILES = [
    *sorted(PACKAGE.rglob("*.py")),
    *(page for page in pages.PAGES if page != CHANGELOG),
    pages.ROOT / "README.md",
]

RARE = {
    # words, in any case: how many of them there may be
    r"nobody|somebody|whoever": 0,
    r"patience": 0,
    r"there are more": 0,
}
"""Words that hide the subject of a sentence, or have two meanings. No limit may grow."""

GONE = {
    # what has a new name: the new name
    r"reports\.StartError\b": "reports.StartFailed; otpy.StartError is the exception",
    r"reports\.AutoShutdown\b": "reports.AutoShutdownBegun; otpy.AutoShutdown is the choice",
    r"\bguardian\b": "at_exit: a guard is a process that ends programs",
    r"\blint as guard\b": "lint: a guard is a process that ends programs",
    r"AutoShutdownMode|StartErrorReport": "the report has a name of its own",
    r"Why\.STALLED": "SILENT: STALLED is a kind of exit",
}


def places(pattern: str, flags: int = 0) -> list[str]:
    """Return where *pattern* stands in the package and the docs, as FILE:LINE."""
    return [
        f"{file.relative_to(pages.ROOT)}:{number}"
        for file in FILES
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1)
        for _ in re.finditer(pattern, line, flags)
    ]


@pytest.mark.parametrize(("words", "most"), RARE.items())
def test_a_rare_word_stays_rare(words, most):
    """A sentence names its subject: the supervisor, the caller, the parent process."""
    found = places(rf"(?<![^\W_])({words})(?![^\W_])", re.IGNORECASE)

    assert len(found) <= most, found


@pytest.mark.parametrize(("old", "new"), GONE.items())
def test_an_old_name_does_not_come_back(old, new):
    """What was renamed, because its name had two meanings, has one name only."""
    assert places(old) == [], new


def entries() -> list[tuple[str, str]]:
    """Return the terms of the glossary, each with the name in the code that carries it."""
    return re.findall(
        r"^(\w.*)\n: .+\n(?:  .+\n)*: `([\w.]+)`$", pages.read("glossary.md"), re.MULTILINE
    )


def test_every_term_of_the_glossary_has_a_carrier():
    """No entry is without one: the terms are all lines that a definition follows."""
    terms = re.findall(r"^(\S.*)\n: ", pages.read("glossary.md"), re.MULTILINE)

    assert [term for term, _ in entries()] == terms
    assert len(terms) > 50


def test_a_term_stands_once():
    """Two entries for one word would be two meanings."""
    terms = [term.lower() for term, _ in entries()]

    assert sorted(set(terms)) == sorted(terms)


@pytest.mark.parametrize("part", ["Words for users", "Words of the code"])
def test_the_terms_are_sorted(part):
    """So that a reader finds them."""
    text = re.split(r"^## ", pages.read("glossary.md"), flags=re.MULTILINE)
    (section,) = [section for section in text if section.startswith(part)]
    terms = [term.lower() for term in re.findall(r"^(\w.*)\n: ", section, re.MULTILINE)]

    assert terms == sorted(terms)


@pytest.mark.parametrize(("term", "carrier"), entries())
def test_what_carries_a_term_exists(term, carrier):
    """A class, function, field or module of that name."""
    assert pkgutil.resolve_name(carrier) is not None, term
