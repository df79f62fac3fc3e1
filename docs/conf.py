"""How Sphinx builds the site: ``nox -s docs``, or ``sphinx-build -W docs docs/_build``."""

import builtins
import importlib.metadata
import re

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import otpy

project = "otpy"
author = "the authors of otpy"
release = importlib.metadata.version("otpy")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "changelog.d"]

# Pages are Markdown as GitHub reads it: links to headings, and diagrams in fences.
myst_enable_extensions = ["deflist"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 4

# The reference of names is made from the docstrings.
autodoc_default_options = {"members": True, "member-order": "bysource"}
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [
    ("Options of programs", "params_style"),
    ("Options of callables", "params_style"),
]

html_theme = "furo"
html_title = "otpy"
html_static_path = ["_static"]
html_theme_options = {
    "source_repository": "https://github.com/otpy/otpy/",
    "source_branch": "main",
    "source_directory": "docs/",
}

LIST_BEGINS = re.compile(r"(.*:)\n( *)(?=1\. )")
SEVERAL = re.compile(r"^ {4}(\w+(?:, [*\w]+)+)(: .*(?:\n {5,}.*)*)", re.MULTILINE)


def mend(app: object, kind: str, name: str, one: object, options: object, lines: list[str]) -> None:
    """Write what docstrings have for people in the words of Sphinx, before it reads them.

    1. A list may follow its heading at once, as that of laws does.
    2. "a, b: text", in a section, means both a and b.
    3. Of an attribute, what stands before a colon is no type.
    """
    text = LIST_BEGINS.sub(r"\1\n\n\2", "\n".join(lines))
    text = SEVERAL.sub(
        lambda entry: "\n".join(f"    {each}{entry[2]}" for each in entry[1].split(", ")), text
    )
    is_attribute = kind in ("attribute", "data", "property") and ":" in text
    lines[:] = (": " * is_attribute + text).split("\n")


def qualify(app: object, page: nodes.document) -> None:
    """Let the names in docstrings mean the public names of otpy, and nothing that is called alike."""
    for link in page.findall(pending_xref):
        if link.get("refdomain") == "py":
            name = link["reftarget"]
            link.attributes.pop("refspecific", None)
            if name in otpy.__all__:
                link["reftarget"] = f"otpy.{name}"
            elif hasattr(builtins, name):
                link["reftarget"] = f"builtins.{name}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mend, priority=100)
    app.connect("doctree-read", qualify)
