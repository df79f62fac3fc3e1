"""The group of all commands.

Laws:
1. A command is a module of its name here, with a click command of its name in it. It is
   imported when it is called or listed; so at its top it imports click, and what it
   works with within its functions.
2. What a command returns is its exit status; None is 0.
3. Whatever is wrong with a call is told in one line.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from otpy.cli.terminal import say, say_line

COMMANDS = ("demo", "run", "check", "show", "lint", "tasks")
"""In the order in which they are listed; one whose module is not there is not."""

INTERRUPTED = 130
"""The exit status if Ctrl-C comes before there is a tree to be stopped: 128 + SIGINT."""

UNWRITTEN = 74
"""The exit status if stdout cannot be written to: EX_IOERR of sysexits.h."""


class Commands(click.Group):
    """Imports a command when it is needed, and tells errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that are there."""
        return [name for name in COMMANDS if importlib.util.find_spec(f"otpy.cli.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None if there is no such one."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(importlib.import_module(f"otpy.cli.{cmd_name}"), cmd_name)
        return command

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command, and exit with its status."""
        prepare_streams()
        try:
            status = super().main(args, prog_name, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except click.ClickException as error:
            say_line(line_of(error), err=True)
            status = error.exit_code
        except click.Abort:
            status = INTERRUPTED
        except OSError as error:
            status = UNWRITTEN
            give_up_stdout(error)
        sys.exit(status)


def prepare_streams() -> None:
    """Have stdout and stderr take any text without an error."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the shell has closed it: otpy … >&-
            # It stays open until the process ends.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path can be no text at all


def give_up_stdout(error: OSError) -> None:
    """Report why stdout cannot be written to, unless its reader has gone.

    The text that stdout still holds is dropped.

    Else the interpreter would try to write that when it ends, and tell of the same
    error again.
    """
    with contextlib.suppress(OSError):
        if error.errno != errno.EPIPE:
            say_line(f"otpy: cannot write: {error.strerror or error}", err=True)
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def line_of(error: click.ClickException) -> str:
    """Return the line about *error*: the command, what is wrong, and where to look."""
    where = getattr(error, "ctx", None)
    name = where.command_path if where is not None else "otpy"
    hint = f" See {name} --help" if isinstance(error, click.UsageError) else ""
    return " ".join(f"{name}: {error.format_message()}{hint}".split())


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(package_name="otpy", message="%(prog)s %(version)s")
@click.pass_context
def otpy(ctx: click.Context) -> None:
    """Erlang/OTP's supervision trees for Python programs made of threads.

    TARGET is a tree: module:attribute or path.py:attribute. The attribute is a
    supervisor's spec, or a function that returns one; without it, tree is meant.
    """
    if ctx.invoked_subcommand is None:
        say(ctx.get_help())
