"""The output of the commands: only this file writes to stdout or stderr.

Law: paths, names and errors come from children, files and command lines, and a terminal
obeys none of them. Only rich writes escapes; its labels are made of ``in_one_line``.
"""

from __future__ import annotations

import json

import click

from otpy.exceptions import in_one_line, printable

__all__ = ["in_one_line", "say", "say_json", "say_line"]


def say(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print *text*, which may have many lines, to stdout or stderr."""
    click.echo(printable(text), err=err, nl=nl)


def say_json(value: object) -> None:
    """Print *value* as JSON; it has its own way to write what is no text."""
    click.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def say_line(text: str, *, err: bool = False) -> None:
    """Print *text* in one line."""
    click.echo(in_one_line(text), err=err)
