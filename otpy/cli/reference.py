"""Writes the lower part of docs/reference/cli.md from the commands.

``python -m otpy.cli.reference docs/reference/cli.md`` does so.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from otpy.cli.group import otpy

MARK = "<!--- from here on written by python -m otpy.cli.reference docs/reference/cli.md -->\n"


def page(text: str) -> str:
    """Return *text* with everything after the mark made anew."""
    head, mark, _ = text.partition(MARK)
    if not mark:
        raise ValueError(f"the page has no line {MARK!r}")
    return head + mark + "".join(f"\n{section}\n" for section in sections())


def sections() -> Iterator[str]:
    """Yield the section of each command."""
    with click.Context(otpy, info_name="otpy") as ctx:
        for name in otpy.list_commands(ctx):
            command = otpy.get_command(ctx, name)
            assert command is not None
            yield section(command, click.Context(command, parent=ctx, info_name=name))


def section(command: click.Command, ctx: click.Context) -> str:
    """Return what there is to say about one command."""
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    texts = [
        textwrap.fill(" ".join(text.split()), 120) for text in (command.help or "").split("\n\n")
    ]
    options = [param for param in command.params if isinstance(param, click.Option)]
    table = "\n".join(["| Option | Meaning |", "|---|---|", *map(row, options)]) if options else ""
    examples = "\n".join(line.strip() for line in (command.epilog or "").splitlines()[2:])
    blocks = [f"## otpy {ctx.info_name}", f"```text\n{usage}\n```", *texts, table]
    return "\n\n".join(filter(None, [*blocks, f"```sh\n{examples}\n```" if examples else ""]))


def row(option: click.Option) -> str:
    """Return the line of one option."""
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    value = (
        ""
        if option.is_flag
        else f" {option.metavar or '|'.join(map(str, choices)) or 'VALUE'}".replace("|", "\\|")
    )
    default = f" Default: {option.default}." if choices and isinstance(option.default, str) else ""
    return f"| `{', '.join(option.opts)}{value}` | {option.help}{default} |"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(page(path.read_text("utf-8")), "utf-8")
