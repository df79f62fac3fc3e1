"""The command ``otpy``: a group in ``group.py``, and one module for each command.

It needs the extra ``otpy[cli]``.
"""

from __future__ import annotations

import sys

NEEDED = ("click", "rich")


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its status."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in NEEDED:
            raise
        sys.stderr.write("otpy's command line needs click and rich: pip install 'otpy[cli]'\n")
        sys.exit(2)
    from otpy.cli.group import otpy

    otpy.main(prog_name="otpy")
