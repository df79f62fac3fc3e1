"""The documents say what there is. Their code is run by the conftest.py of the repository's root."""

from __future__ import annotations

import importlib
import pkgutil
import re

import attrs
import pytest

import otpy
from otpy import abc, reports
from otpy.runtime.options import Options
from otpy.specs import Common
from tests import pages
from tests.pages import DOCS, PAGES, ROOT

REFERENCE = pages.read("reference.md")

REPORTS = [
    one
    for one in vars(reports).values()
    if isinstance(one, type) and issubclass(one, reports.Report)
]
PUBLIC = [getattr(otpy, name) for name in otpy.__all__]

MEMBERS = [
    *Common.__annotations__,
    *Options.__annotations__,
    *(
        field.name
        for field in attrs.fields(otpy.SupervisorSpec)
        if field.name not in ("start", "dynamic")
    ),
    *(name for name in dir(otpy.Supervisor) if not name.startswith("_")),
    *(name for name in dir(otpy.Service) if not name.startswith("_")),
    *(
        value.name
        for choice in PUBLIC
        if isinstance(choice, type(otpy.Strategy))
        for value in choice
    ),
    *(
        field.name
        for value in (
            otpy.ChildInfo,
            otpy.Counts,
            otpy.Snapshot,
            otpy.Escalation,
            otpy.StopReport,
            *REPORTS,
        )
        for field in attrs.fields(value)
    ),
]


@pytest.mark.parametrize("name", [*otpy.__all__, *(report.__name__ for report in REPORTS)])
def test_the_reference_has_every_public_name(name):
    assert re.search(rf"`(otpy\.)?{name}\b", REFERENCE)


@pytest.mark.parametrize("name", sorted(set(MEMBERS)))
def test_the_reference_has_every_option_and_member(name):
    assert re.search(rf"`{name}\b|\"{name}\"", REFERENCE)


@pytest.mark.parametrize("name", [name for name in vars(otpy.Context) if not name.startswith("_")])
def test_the_reference_has_what_a_child_sees(name):
    """All but what belongs to the kinds of children."""
    is_for_children = name not in ("enter", "hangs_on", "ask", "fence", "pulse", "saved")

    assert bool(re.search(rf"^\|.*`{name}\b.*\|", REFERENCE, re.MULTILINE)) or not is_for_children


@pytest.mark.parametrize("name", ["Birth", "Child", "Clock", "Puttable", "ReportHandler"])
def test_the_reference_has_the_ports(name):
    assert hasattr(abc, name)
    assert f"`{name}`" in REFERENCE


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    """Links between the documents, and to headings in them."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def anchors(page):
    """The names of the headings of *page*, as links spell them."""
    headings = re.findall(r"^#+ (.*)", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page():
    """By its folder and name."""
    index = pages.read("index.md")
    names = {page.relative_to(DOCS).as_posix() for page in PAGES} - {"index.md"}

    assert {name for name in names if f"({name})" not in index} == set()


def test_the_reference_made_from_docstrings_has_every_public_name():
    """Once; modules have pages of their own."""
    text = "".join(page.read_text("utf-8") for page in PAGES if page.parent.name == "api")
    names = re.findall(r"^\.\. auto(?:function|class|exception):: otpy\.(\w+)$", text, re.MULTILINE)
    modules = re.findall(r"^\.\. automodule:: otpy\.(\w+)$", text, re.MULTILINE)

    assert sorted(names + modules) == sorted({*otpy.__all__, "taskgraph"})


def test_the_path_of_a_crash_leads_through_the_code():
    """Each step of "How to read the code" names a file, and a function or method in it."""
    text = pages.read("reading.md").partition("## The path of one crash")[2]
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `([\w.]+)` \|", text, re.MULTILINE)

    assert len(steps) == 14
    for path, name in steps:
        module = importlib.import_module(f"otpy.{path.removesuffix('.py').replace('/', '.')}")
        assert pkgutil.resolve_name(f"{module.__name__}:{name}").__module__ == module.__name__


def test_the_pages_stand_in_the_four_folders():
    """Those that say what kind of reader they are for; the index, the glossary and the changelog are for all."""
    folders = {page.parent.name for page in PAGES if page.parent != DOCS}

    assert folders - {"api"} == {"tutorial", "how-to", "reference", "explanation"}
    assert {page.name for page in PAGES if page.parent == DOCS} == {
        "index.md",
        "glossary.md",
        "changelog.md",
    }


def test_the_commands_come_first():
    """The first two sh blocks of the README: install and run, install and test."""
    blocks = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"))

    assert blocks[0].endswith("pip install '.[cli]' && .venv/bin/otpy demo")
    assert blocks[1].endswith("python -m pytest -n 2 --dist loadfile")
