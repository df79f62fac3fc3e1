"""``otpy check``: look at a tree without starting it."""

from __future__ import annotations

import click

from otpy.cli.target import look_at, takes_target
from otpy.cli.terminal import say_json, say_line


@click.command(
    epilog="""\b
Examples:
  otpy check app:tree
  otpy check app.py --json
"""
)
@takes_target
@click.option(
    "--json", "as_json", is_flag=True, help="Print a list of objects: code, level, path, message."
)
def check(target: str, *, as_json: bool, verbose: bool) -> int:
    """Look at the tree TARGET without starting it, and print what will surprise its author.

    Such as a limit on restarts that can never be reached, or a heartbeat that is
    shorter than a sleep. Each finding has a code, which docs/how-to/check.md explains,
    and a level: error, warning or note.

    Exit status: 0, there is no error; 1, there are errors; 2, the target, its tree or
    an option is wrong.
    """
    import collections

    tree = look_at(target, verbose=verbose)
    from otpy.check import Level
    from otpy.check import check as find

    found = find(tree)
    if as_json:
        rows = [
            {"code": one.code, "level": one.level.value, "path": one.path, "message": one.message}
            for one in found
        ]
        say_json(rows)
    else:
        counts = collections.Counter(one.level for one in found)
        total = ", ".join(f"{level.value}s: {counts[level]}" for level in Level)
        for line in (*map(str, found), f"{tree.id}: {total}"):
            say_line(line)
    return int(any(one.level is Level.ERROR for one in found))
