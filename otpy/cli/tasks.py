"""``otpy tasks``: run the functions of a file that ``@task`` marks, in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from otpy.cli.group import INTERRUPTED
from otpy.cli.terminal import say


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  otpy tasks build.py --workers 4 --tags fast,unit --target=release
  otpy tasks build.py::link --result-compile=main.o
""",
)
@click.argument("target", metavar="FILE.py[::NAME]")
@click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY=VALUE]...")
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="How many tasks may run at once."
)
@click.option(
    "--tags",
    metavar="A,B",
    help="Run only the tasks that have one of these tags, and not what they come after.",
)
@click.option(
    "--skip-deps", is_flag=True, help="Skip the tasks that come after one that did not pass."
)
@click.option(
    "--graph", "shows_graph", is_flag=True, help="Show what comes after what, and run nothing."
)
@click.option("--progress", is_flag=True, help="Show a progress bar instead of a letter per task.")
@click.option(
    "--state-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="JSON, an object, that the state begins with.",
)
@click.option(
    "--show-state",
    is_flag=True,
    help="Print the names and types of what is in the state at the end.",
)
@click.option(
    "--show-values",
    is_flag=True,
    help="Print the values, too, but for those whose names sound like a secret: "
    "no guess finds all of them.",
)
@click.option(
    "--log",
    "logs",
    is_flag=True,
    help="Say on stderr when each task begins and ends, and on which thread.",
)
@click.option(
    "--verbose",
    is_flag=True,
    help="Show the traceback of an error of the file or of the command line, too.",
)
def tasks(
    target: str, settings: tuple[str, ...], workers: int | None, tags: str | None, **flags: Any
) -> int:
    """Run the functions of FILE.py that @otpy.taskgraph.task marks, each after those that it depends on.

    FILE.py::NAME runs one task alone. --KEY=VALUE goes to the file's setup_state, a
    function that returns the state: setup_state(key, ...) takes each as a keyword, all
    of them str; setup_state(state) takes the dict that the state begins with.
    --result-NAME=VALUE stands for the result of a task that is not run. What the state
    has in state["results"] stays there; a task that is run replaces its own.

    For each task it prints a letter: . passed, f failed, s skipped, c cancelled. Then
    it prints what has failed, and the summary.

    Exit status: 0, all passed or were skipped; 1, some failed; 2, the file, its tasks
    or an option is wrong; 130, it was interrupted.
    """
    from otpy.cli import taskfile

    order = taskfile.order_of(target, settings, tags, flags["state_file"], verbose=flags["verbose"])
    with taskfile.refused_in_one_line(verbose=order.verbose):
        graph = taskfile.build(taskfile.load(order), order, workers, skips=flags["skip_deps"])
        if flags["shows_graph"]:
            say(taskfile.drawing(graph), nl=False)
            return 0
        summary = taskfile.run(graph, progress=flags["progress"], logs=flags["logs"])
    taskfile.print_end(
        graph, summary, shows_state=flags["show_state"], shows_values=flags["show_values"]
    )
    return INTERRUPTED if summary.cancelled else int(summary.failed > 0)
