"""``otpy lint``: the same as ``python -m otpy.lint``."""

from __future__ import annotations

import click


@click.command(
    epilog="""\b
Examples:
  otpy lint src
  otpy lint --select OTP1 src tests/helpers.py
"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="PATH...")
@click.option(
    "--select", default="OTP", metavar="CODE,...", help="Look for these only; OTP1: all of OTP1xx."
)
@click.option(
    "--config",
    type=click.Path(),
    metavar="FILE",
    help="Read this instead of the nearest pyproject.toml.",
)
def lint(paths: tuple[str, ...], select: str, config: str | None) -> int:
    """Find threads that no supervisor watches.

    PATH is a file, or a directory with *.py files in it. The source is read and never
    run. docs/how-to/lint.md explains the codes.

    Exit status: 0, nothing is found; 1, something is; 2, a path, an option or the
    configuration is wrong.
    """
    from otpy.lint import main

    options = [f"--select={select}", *([f"--config={config}"] if config is not None else [])]
    return main([*options, "--", *paths])
